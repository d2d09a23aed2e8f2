"""The websocket half of the emulated exchange: one connection's requests, and the pump that plays the tapes to it."""

import asyncio
from collections import deque
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from feeds.emulator.player import Player
from feeds.emulator.venue import Venue

TICK_S = 0.02
INBOUND_PER_S = 15
"""More messages a second than this end the connection (documented 10; some 15 back to back were seen to end one)."""


class _Request(msgspec.Struct):
    method: str
    params: list[str] = []
    id: int | str | None = None


class Websockets:
    """Serve websocket connections about a venue."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._open: set[asyncio.Transport] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection until either side ends it."""
        if self._venue.refuse:
            return web.Response(status=503)
        self._venue.requests["websocket"] += 1
        family, combined, names = _route(request)
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        player = Player(self._venue, family)
        transport = request.transport
        if transport is None:
            return socket
        self._open.add(transport)
        pump = asyncio.create_task(self._pump(socket, player, combined=combined), name=f"pump {request.path}")
        try:
            self._subscribe(player, names)
            await self._listen(socket, player)
        finally:
            self._open.discard(transport)
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
        return socket

    async def cut(self) -> None:
        """Break every connection without a farewell; return once they are gone."""
        doomed = set(self._open)
        while doomed := doomed & self._open:
            for transport in doomed:
                transport.abort()
            await asyncio.sleep(0)

    def _subscribe(self, player: Player, names: list[str]) -> None:
        if names:
            player.subscribe(names)
            self._venue.clock.begin()

    async def _listen(self, socket: web.WebSocketResponse, player: Player) -> None:
        now_s = asyncio.get_running_loop().time
        inbound: deque[float] = deque(maxlen=INBOUND_PER_S)
        async for message in socket:
            if len(inbound) == INBOUND_PER_S and now_s() - inbound[0] < 1:
                await socket.close(code=1008, message=b"Too many requests")
                return
            inbound.append(now_s())
            if message.type is WSMsgType.TEXT:
                try:
                    await socket.send_str(self._answer(player, message.data))
                except ConnectionError:
                    return

    def _answer(self, player: Player, text: str) -> str:
        try:
            request = msgspec.json.decode(text, type=_Request)
        except msgspec.DecodeError as error:
            return _json({"error": {"code": 2, "msg": str(error)}, "id": None})
        result = None
        if request.method == "SUBSCRIBE":
            self._subscribe(player, request.params)
        elif request.method == "UNSUBSCRIBE":
            player.unsubscribe(request.params)
        elif request.method == "LIST_SUBSCRIPTIONS":
            result = list(player.streams)
        else:
            return _json(
                {"error": {"code": 2, "msg": f"Invalid request: unknown method {request.method}"}, "id": request.id}
            )
        return _json({"result": result, "id": request.id})

    async def _pump(self, socket: web.WebSocketResponse, player: Player, *, combined: bool) -> None:
        """Send what falls due, tick by tick; a slow reader holds only its own pump back."""
        while not socket.closed:
            due = player.due(self._venue.clock.now_ms())
            if self._venue.mute:
                self._venue.lost += len(due)
                due = []
            for name, data in due:
                try:
                    await socket.send_str(f'{{"stream":"{name}","data":{data}}}' if combined else data)
                except ConnectionError:
                    return
            self._venue.frames += len(due)
            await asyncio.sleep(TICK_S)


def _route(request: web.Request) -> tuple[str, bool, list[str]]:
    """Read the path: ``/market/stream?streams=a/b``, ``/market/ws``, ``/market/ws/a`` and their like."""
    levels = request.path.strip("/").split("/")
    family = levels.pop(0) if levels[0] not in ("ws", "stream") else ""
    named = levels[1:] or request.query.get("streams", "").split("/")
    return family, levels[0] == "stream", [name for name in named if "@" in name]


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
