"""Start and stop the emulated exchange."""

import asyncio
import time
from collections.abc import Callable, Mapping

from aiohttp import web

from feeds.emulator.clock import VirtualClock
from feeds.emulator.rest import Rest
from feeds.emulator.tape import Tape
from feeds.emulator.venue import Venue
from feeds.emulator.websocket import Websockets

SHUTDOWN_S = 1.0


class Emulator:
    """Binance USDⓈ-M futures on one port: REST and websocket over the same tapes and clock.

    The clock stands at `start_ns` until the first subscription; what the tapes hold before is history. Faults are
    injected by `cut`, `refuse` and `mute`.
    """

    def __init__(
        self,
        tapes: Mapping[str, Tape],
        *,
        start_ns: int,
        speed: float = 1.0,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.venue = Venue(VirtualClock(start_ns, speed=speed, monotonic_ns=monotonic_ns), tapes)
        self._websockets = Websockets(self.venue)
        self._runner: web.AppRunner | None = None

    @property
    def refuse(self) -> bool:
        """Fault: new connections and requests are answered 503."""
        return self.venue.refuse

    @refuse.setter
    def refuse(self, on: bool) -> None:
        self.venue.refuse = on

    @property
    def mute(self) -> bool:
        """Fault: connections stay open and what falls due on them is lost."""
        return self.venue.mute

    @mute.setter
    def mute(self, on: bool) -> None:
        self.venue.mute = on

    def now_ns(self) -> int:
        """Return the emulated exchange's time, ns UTC."""
        return self.venue.clock.now_ns()

    async def cut(self) -> None:
        """Break all websocket connections without a farewell; return once they are gone."""
        await self._websockets.cut()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen, on a free port if `port` is 0; return the port. OSError when it is taken."""
        app = web.Application()
        app.router.add_get("/fapi/v1/{name:.+}", Rest(self.venue).handle)
        for family in ("", "/market", "/public"):
            for path in ("/stream", "/ws", "/ws/{stream}"):
                app.router.add_get(family + path, self._websockets.handle)
        app.on_shutdown.append(lambda _: self._websockets.cut())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close every connection and the port."""
        assert self._runner is not None, "not started"
        await self._runner.cleanup()


async def serve(
    emulator: Emulator, stop: asyncio.Event, *, host: str, port: int, ready: Callable[[int], None] = lambda _: None
) -> None:
    """Run the emulator until `stop` is set; `ready` gets the port it listens on."""
    ready(await emulator.start(host, port))
    try:
        await stop.wait()
    finally:
        await emulator.stop()
