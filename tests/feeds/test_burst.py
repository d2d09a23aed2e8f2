"""A burst far beyond what we keep up with: the exchange waits, nothing is lost, and nobody takes us for dead."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from feeds.events import Event
from tests.feeds.test_binance import agg, wrapped
from tests.feeds.test_runner import Sink, feeding

WORK_S = 0.000_2
TICKS = 20_000
FRAMES_A_TURN, TURN_S = 200, 0.02
"""The most that may keep the event loop busy at a stretch, with room for a slow machine."""
PING_S, PATIENCE_S = 0.2, 3.0


class Exchange:
    """Sends as fast as it can, pings, and hangs up with 1011 on whoever does not answer in time."""

    def __init__(self) -> None:
        self.closed: list[str] = []
        self.pongs = 0

    def talk(self, websocket: ServerConnection) -> None:
        names: list[str] = []
        websocket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        with contextlib.suppress(ConnectionClosed):
            for raw in websocket:
                request = json.loads(raw)
                names += request.get("params", [])
                is_list = request["method"] == "LIST_SUBSCRIPTIONS"
                websocket.send(json.dumps({"result": names if is_list else None, "id": request["id"]}))
                if is_list:
                    break
            for number in range(1, TICKS + 1):
                # Long frames, so that the system buffers fewer: a ping waits behind what was sent before it.
                websocket.send(wrapped(agg(a=number, nq="0" * 750)))
                self.pongs += number % 1000 == 0 and websocket.latency > 0
            for _ in websocket:
                pass
        self.closed.append(f"{websocket.close_code} {websocket.close_reason}")


@contextmanager
def serving(exchange: Exchange) -> Iterator[int]:
    with serve(
        exchange.talk, "127.0.0.1", 0, compression=None, ping_interval=PING_S, ping_timeout=PATIENCE_S
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


class Slow(Sink):
    """Works longer on each trade than the exchange does, and notes in which turn of the event loop it came."""

    turn = 0

    def __init__(self) -> None:
        super().__init__()
        self.by_turn: dict[int, int] = {}

    def events(self, events: list[Event]) -> None:
        super().events(events)
        self.by_turn[self.turn] = self.by_turn.get(self.turn, 0) + len(events)
        until_s = time.perf_counter() + WORK_S
        while time.perf_counter() < until_s:
            pass


async def test_keepalives_are_answered_through_a_burst_that_takes_longer_than_their_patience() -> None:
    exchange, sink = Exchange(), Slow()

    async def turns() -> None:
        while True:
            sink.turn += 1
            await asyncio.sleep(0)

    with serving(exchange) as port:
        counting = asyncio.create_task(turns())
        async with feeding(f"ws://127.0.0.1:{port}/market/stream", sink=sink):
            async with asyncio.timeout(60):
                while sum(sink.by_turn.values()) < TICKS:  # noqa: ASYNC110 (the sink is told, and tells nobody)
                    await asyncio.sleep(0.02)
            assert sink.ids == list(range(1, TICKS + 1)), "each trade once, in order"
            assert sink.edges == ["connected"], "one connection carried the whole burst"
            assert not exchange.closed
        counting.cancel()
    assert TICKS * WORK_S > PATIENCE_S
    assert exchange.pongs, "it did ask"
    assert max(sink.by_turn.values()) <= FRAMES_A_TURN
    assert len(sink.by_turn) >= TICKS * WORK_S / TURN_S
