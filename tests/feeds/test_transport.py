import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.utils import accept_key

from feeds.errors import RateLimited, RemoteError, RequestRefused
from feeds.transport import connect

Handler = Callable[[ServerConnection], Awaitable[None]]


def port_of(server: Server | asyncio.Server) -> int:
    port: int = next(iter(server.sockets)).getsockname()[1]
    return port


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`, generously."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is awaited here has no event to offer
            await asyncio.sleep(0.005)


def answering(status: HTTPStatus, **headers: str) -> Callable[[ServerConnection, Request], Response]:
    def process_request(connection: ServerConnection, _: Request) -> Response:
        response = connection.respond(status, "no\n")
        for name, value in headers.items():
            response.headers[name.replace("_", "-")] = value
        return response

    return process_request


async def hold(websocket: ServerConnection) -> None:
    await websocket.wait_closed()


async def test_frames_arrive_as_bytes_whatever_their_kind_up_to_eight_mebibytes() -> None:
    async def talk(websocket: ServerConnection) -> None:
        await websocket.send("text")
        await websocket.send(b"binary")
        await websocket.send(b"\xff not text", text=True)
        await websocket.send("x" * (8 << 20))
        await websocket.send(f"echo {await websocket.recv()!r}")
        await websocket.send("x" * ((8 << 20) + 1))
        await websocket.wait_closed()

    async with serve(talk, "127.0.0.1", 0) as server, connect(f"ws://127.0.0.1:{port_of(server)}") as connection:
        assert [await connection.recv() for _ in range(3)] == [b"text", b"binary", b"\xff not text"]
        assert len(await connection.recv()) == 8 << 20
        await connection.send("hello")
        assert await connection.recv() == b"echo 'hello'"
        with pytest.raises(RemoteError, match="1009"):
            await connection.recv()
        with pytest.raises(RemoteError):
            await connection.send("too late")


async def test_nothing_is_compressed_and_the_socket_sends_at_once() -> None:
    seen: list[tuple[object, ...]] = []

    async def look(websocket: ServerConnection) -> None:
        assert websocket.request is not None
        seen.append((websocket.request.headers.get("Sec-WebSocket-Extensions"), websocket.protocol.extensions))

    async with serve(look, "127.0.0.1", 0) as server, connect(f"ws://127.0.0.1:{port_of(server)}") as connection:
        with pytest.raises(RemoteError, match="connection ended"):
            await connection.recv()
    assert seen == [(None, [])]


async def test_a_cut_is_a_remote_fault() -> None:
    async def cut(websocket: ServerConnection) -> None:
        await websocket.send("last")
        await asyncio.sleep(0.05)
        websocket.transport.abort()

    async with serve(cut, "127.0.0.1", 0) as server, connect(f"ws://127.0.0.1:{port_of(server)}") as connection:
        assert await connection.recv() == b"last"
        with pytest.raises(RemoteError, match="connection ended"):
            await connection.recv()


@pytest.mark.parametrize("status", [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND])
async def test_a_refused_handshake_is_a_remote_fault(status: HTTPStatus) -> None:
    async with serve(hold, "127.0.0.1", 0, process_request=answering(status)) as server:
        with pytest.raises(RemoteError, match=f"HTTP {status.value}") as failed:
            async with connect(f"ws://127.0.0.1:{port_of(server)}"):
                pass
    assert not isinstance(failed.value, RateLimited)


@pytest.mark.parametrize(
    ("header", "expected_s"), [({"Retry_After": "7"}, 7.0), ({"Retry_After": "soon"}, 60.0), ({}, 60.0)]
)
async def test_a_rate_limit_says_for_how_long(header: dict[str, str], expected_s: float) -> None:
    refusing = answering(HTTPStatus.TOO_MANY_REQUESTS, **header)
    async with serve(hold, "127.0.0.1", 0, process_request=refusing) as server:
        with pytest.raises(RateLimited) as failed:
            async with connect(f"ws://127.0.0.1:{port_of(server)}"):
                pass
    assert failed.value.retry_after_s == expected_s


async def test_nobody_there_and_no_websocket_are_remote_faults() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    port = 0
    for behaviour in (hang_up, say_nothing):
        async with await asyncio.start_server(behaviour, "127.0.0.1", 0) as server:
            port = port_of(server)
            with pytest.raises(RemoteError, match="cannot connect"):
                async with connect(f"ws://127.0.0.1:{port}", open_timeout_s=0.2):
                    pass
            await asyncio.sleep(0.05)  # lets the server's side see the end
    with pytest.raises(RemoteError, match="cannot connect"):
        async with connect(f"ws://127.0.0.1:{port}"):
            pass


async def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(RequestRefused):
        async with connect("http://127.0.0.1:1"):
            pass


async def test_the_block_ends_with_a_clean_close_and_its_own_errors_pass_unchanged() -> None:
    closed: asyncio.Queue[int] = asyncio.Queue()

    async def note(websocket: ServerConnection) -> None:
        await websocket.wait_closed()
        closed.put_nowait(websocket.close_code or 0)

    async with serve(note, "127.0.0.1", 0) as server:
        with pytest.raises(OSError, match="disk full"):
            async with connect(f"ws://127.0.0.1:{port_of(server)}"):
                raise OSError("disk full")
        assert await closed.get() == 1000


async def test_a_slow_reader_pauses_the_socket_and_loses_nothing() -> None:
    frames, sent = 20_000, 0

    async def flood(websocket: ServerConnection) -> None:
        nonlocal sent
        for n in range(frames):
            await websocket.send(f"{n:0>1000}")
            sent += 1
        await websocket.wait_closed()

    async with serve(flood, "127.0.0.1", 0) as server, connect(f"ws://127.0.0.1:{port_of(server)}") as connection:
        assert int(await connection.recv()) == 0
        before = -1
        while before < sent:  # until the server cannot send any more
            before = sent
            await asyncio.sleep(0.1)
        assert sent < frames
        assert [int(await connection.recv()) for _ in range(frames - 1)] == list(range(1, frames))


async def test_cancelled_anywhere_it_leaves_nothing_behind() -> None:
    async def use(url: str) -> None:
        async with connect(url) as connection:
            while True:
                await connection.recv()

    async def chatter(websocket: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                await websocket.send("x")
                await asyncio.sleep(0)

    async with serve(chatter, "127.0.0.1", 0) as server:
        before = asyncio.all_tasks()
        for turns in [*range(12), 20, 40, 80]:
            user = asyncio.create_task(use(f"ws://127.0.0.1:{port_of(server)}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            user.cancel()
            await asyncio.wait([user])
            assert user.cancelled()
            await until(lambda: not server.connections and asyncio.all_tasks() == before)


async def test_a_second_cancellation_does_not_wait_for_a_peer_that_never_closes() -> None:
    gone = asyncio.Event()

    async def shake_hands_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in request.splitlines() if line.startswith("Sec-WebSocket-Key"))
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade"
        writer.write(f"{head}\r\nSec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode())
        with suppress(ConnectionResetError):
            await reader.read()
        gone.set()
        writer.close()

    async def use(url: str) -> None:
        async with connect(url, close_timeout_s=300.0) as connection:
            opened.set()
            await connection.recv()

    opened = asyncio.Event()
    async with await asyncio.start_server(shake_hands_only, "127.0.0.1", 0) as server, asyncio.timeout(20):
        user = asyncio.create_task(use(f"ws://127.0.0.1:{port_of(server)}"))
        await opened.wait()
        user.cancel()
        await asyncio.sleep(0.05)
        assert not user.done()
        user.cancel()
        await asyncio.wait([user])
        await gone.wait()
