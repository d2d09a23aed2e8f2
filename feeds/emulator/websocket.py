"""The websocket shell of the emulated exchange: connections, the pump that plays to each, and what disturbs them."""

import asyncio
from collections import deque
from collections.abc import Sequence

from aiohttp import WSMsgType, web

from feeds.emulator.dialects.base import ABNORMAL, Close, Dialect, Frame, Ping, Pong
from feeds.emulator.faults import Disorder
from feeds.emulator.venue import Venue

TICK_S = 0.02
OUTBOX_MAX = 100_000
"""Frames that may wait for one connection; beyond, it is broken."""
TOO_FAST = Close(1008, "Too many requests")


class Websockets:
    """Serve websocket connections about a venue in a dialect."""

    def __init__(self, venue: Venue, dialect: Dialect) -> None:
        self._venue, self._dialect = venue, dialect
        self._open: set[_Connection] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection until either side ends it."""
        if self._venue.faults.refusal:
            return web.Response(status=self._venue.faults.refusal)
        self._venue.requests["websocket"] += 1
        socket = web.WebSocketResponse(compress=False, autoping=False)
        await socket.prepare(request)
        connection = _Connection(request, socket, self._venue, self._dialect)
        self._open.add(connection)
        try:
            await connection.run()
        finally:
            self._open.discard(connection)
        return socket

    async def cut(self) -> None:
        """Break every connection without a farewell; return once they are gone."""
        doomed = set(self._open)
        for connection in doomed:
            connection.abort()
        await self._gone(doomed)

    async def expire(self, older_s: float) -> None:
        """End the connections of at least this age as the exchange does at the end of their life."""
        if self._venue.faults.half_open:
            return
        doomed = {connection for connection in self._open if connection.age_s() >= older_s}
        for connection in doomed:
            await connection.send([self._dialect.farewell])
        await self._gone(doomed)

    async def _gone(self, doomed: "set[_Connection]") -> None:
        while doomed & self._open:  # noqa: ASYNC110 (the handlers are aiohttp's, not ours to await)
            await asyncio.sleep(0)


class _Connection:
    def __init__(self, request: web.Request, socket: web.WebSocketResponse, venue: Venue, dialect: Dialect) -> None:
        self._request, self._socket, self._venue, self._dialect = request, socket, venue, dialect
        self._loop_s = asyncio.get_running_loop().time
        self._born_s = self._loop_s()
        self._wire = dialect.connect(request.path, request.query, self._now_s())
        self._outbox: deque[Frame] = deque()
        self._sending = asyncio.Lock()
        self._disorder = Disorder[Frame](venue.faults, venue.requests["websocket"])

    def age_s(self) -> float:
        """Return for how long it has been open."""
        return self._loop_s() - self._born_s

    def abort(self) -> None:
        """Break it without a farewell."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def run(self) -> None:
        """Listen and play until either side ends it."""
        async with asyncio.TaskGroup() as group:
            pump = group.create_task(self._pump(), name="pump")
            await self._listen()
            pump.cancel()

    async def send(self, frames: Sequence[Frame]) -> None:
        """Send what waits and then `frames`; while the exchange stalls, all of it waits, up to a bound."""
        if self._venue.faults.half_open:
            return
        self._outbox.extend(frames)
        if len(self._outbox) > OUTBOX_MAX:
            self.abort()
        async with self._sending:
            while self._outbox and self._loop_s() >= self._venue.faults.stalled_until_s:
                try:
                    await self._write(self._outbox.popleft())
                except ConnectionError:
                    self._outbox.clear()

    def _now_s(self) -> float:
        """Return the time of keep-alive rules."""
        return self._loop_s() * self._venue.keepalive_speed

    async def _write(self, frame: Frame) -> None:
        if isinstance(frame, str):
            await self._socket.send_str(frame)
        elif isinstance(frame, bytes):
            await self._socket.send_bytes(frame)
        elif isinstance(frame, Ping):
            await self._socket.ping()
        elif isinstance(frame, Pong):
            await self._socket.pong(frame.payload)
        elif frame.code == ABNORMAL:
            self.abort()
        else:
            await self._socket.close(code=frame.code, message=frame.reason.encode())

    async def _listen(self) -> None:
        most = self._dialect.inbound_per_s
        inbound: deque[float] = deque(maxlen=most)
        await self.send(self._wire.hello())
        async for message in self._socket:
            if self._venue.faults.half_open:
                continue
            if len(inbound) == most and self._loop_s() - inbound[0] < 1:
                await self.send([TOO_FAST])
                return
            inbound.append(self._loop_s())
            if message.type is WSMsgType.TEXT:
                await self.send(self._wire.answer(message.data, self._now_s()))
            elif message.type is WSMsgType.PING:
                await self.send([Pong(message.data)])
            elif message.type is WSMsgType.PONG:
                self._wire.pong(self._now_s())

    async def _pump(self) -> None:
        """Send what falls due, tick by tick; a slow reader holds only its own pump back."""
        while not self._socket.closed:
            due = self._disturbed(self._wire.due(self._venue.clock.now_ms()))
            lifetime_s = self._venue.faults.lifetime_s or self._dialect.lifetime_s
            ending = [self._dialect.farewell] if self.age_s() > lifetime_s else self._wire.idle(self._now_s())
            await self.send([*due, *ending])
            await asyncio.sleep(TICK_S)

    def _disturbed(self, due: list[Frame]) -> list[Frame]:
        if self._venue.faults.mute or self._venue.faults.half_open:
            self._venue.lost += len(due)
            return []
        due = self._disorder.apply(due)
        self._venue.frames += len(due)
        return due
