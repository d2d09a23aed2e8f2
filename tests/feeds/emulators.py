"""An emulated exchange whose clock a test moves by hand, and ways to speak with it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from websockets.asyncio.client import ClientConnection, connect

from feeds.emulator import Emulator, Tape, tape_from

BEGIN_MS = 1_700_000_040_000
START_MS = BEGIN_MS + 3 * 3_600_000 + 17_123
TIMEOUT_S = 20.0


class HandClock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


def invented(native: str = "BTCUSDT", seed: int = 3) -> Tape:
    return tape_from("synthetic", native, seed=seed, begin_ns=BEGIN_MS * 1_000_000)


@asynccontextmanager
async def running(
    hand: HandClock, natives: Sequence[str] = ("BTCUSDT", "ETHUSDT"), **options: Any
) -> AsyncIterator[tuple[Emulator, int]]:
    """Serve invented markets; yield the emulator and its port. `options` are those of `Emulator`."""
    tapes = {native: invented(native) for native in natives}
    emulator = Emulator(tapes, start_ns=START_MS * 1_000_000, monotonic_ns=hand, **options)
    port = await emulator.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield emulator, port
    finally:
        await emulator.stop()


async def ask(socket: ClientConnection, method: str, *params: str, request_id: int = 1) -> Any:
    await socket.send(msgspec.json.encode({"method": method, "params": params, "id": request_id}).decode())
    async for text in socket:
        frame = msgspec.json.decode(text)
        if frame.get("id") == request_id:
            return frame
    raise AssertionError("closed before the answer")


async def drained(socket: ClientConnection) -> None:
    while True:
        await socket.recv()


def joined(port: int, path: str) -> connect:
    """Connect; without a bound on its queue the client can say goodbye with frames unread."""
    return connect(f"ws://127.0.0.1:{port}{path}", proxy=None, max_queue=None)


async def get(port: int, name: str, **query: int | str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/fapi/v1/{name}", params=query) as reply,
    ):
        body = await reply.read()
        return reply.status, msgspec.json.decode(body) if body else None
