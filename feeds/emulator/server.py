"""Start and stop the emulated exchange."""

import asyncio
import time
from collections.abc import Callable, Mapping

from aiohttp import web

from feeds.emulator.clock import VirtualClock
from feeds.emulator.dialects import DIALECTS
from feeds.emulator.faults import Faults
from feeds.emulator.rest import Rest
from feeds.emulator.tape import Tape
from feeds.emulator.venue import Venue
from feeds.emulator.websocket import Websockets

SHUTDOWN_S = 1.0


class Emulator:
    """An exchange on one port: REST and websocket over the same tapes and clock, in the dialect of `exchange`.

    The clock stands at `start_ns` until the first subscription; what the tapes hold before is history. What can go
    wrong is set in `faults` or done by the methods here; markets change through `venue`.

    Raises:
        KeyError: the exchange is not one of `DIALECTS`.

    """

    def __init__(
        self,
        tapes: Mapping[str, Tape],
        *,
        exchange: str = "binance",
        start_ns: int,
        speed: float = 1.0,
        keepalive_speed: float = 1.0,
        seed: int = 0,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.faults = Faults(seed)
        clock = VirtualClock(start_ns, speed=speed, monotonic_ns=monotonic_ns)
        self.venue = Venue(clock, tapes, self.faults, keepalive_speed=keepalive_speed)
        self._dialect = DIALECTS[exchange](self.venue)
        self._websockets = Websockets(self.venue, self._dialect)
        self._runner: web.AppRunner | None = None

    @property
    def refuse(self) -> bool | int:
        """Fault: see `Faults.refuse`."""
        return self.faults.refuse

    @refuse.setter
    def refuse(self, status: bool | int) -> None:
        self.faults.refuse = status

    @property
    def mute(self) -> bool:
        """Fault: see `Faults.mute`."""
        return self.faults.mute

    @mute.setter
    def mute(self, on: bool) -> None:
        self.faults.mute = on

    def now_ns(self) -> int:
        """Return the emulated exchange's time, ns UTC."""
        return self.venue.clock.now_ns()

    def stall(self, seconds: float) -> None:
        """Let no connection send anything for so long; nothing is lost. Zero ends it."""
        self.faults.stalled_until_s = asyncio.get_running_loop().time() + seconds

    async def expire(self, older_s: float = 0.0) -> None:
        """End connections of at least this age as the exchange does when their life is over; return once it is done."""
        await self._websockets.expire(older_s)

    async def cut(self) -> None:
        """Break all websocket connections without a farewell; return once they are gone."""
        await self._websockets.cut()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen, on a free port if `port` is 0; return the port. OSError when it is taken."""
        app = web.Application()
        app.router.add_get(self._dialect.rest_prefix + "{path:.+}", Rest(self.venue, self._dialect).handle)
        for path in self._dialect.ws_paths:
            app.router.add_get(path, self._websockets.handle)
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
