"""One feed's life: connect, subscribe, read, and again after every loss, until told to stop."""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from feeds.backoff import Backoff
from feeds.errors import RateLimited, RemoteError
from feeds.events import Ack, Event, Malformed, MarkPrice, Refusal, Subscriptions
from feeds.exchanges.base import Codec
from feeds.session import Limits, Session, State
from feeds.subscription import Subscription
from feeds.transport import Connection, connect

_BURST_FRAMES = 200
_BURST_S = 0.005
"""So much work, by count or by time, is done before the event loop gets its turn."""
_MALFORMED_LOG_S = 60.0


class FeedSink(Protocol):
    """Where a feed delivers. All calls are synchronous and come from one task, in order."""

    def connected(self) -> None:
        """Every stream is confirmed: from here on nothing is missed."""

    def lost(self, reason: str) -> None:
        """Trades may be missing from now on, until `connected`. Once per outage."""

    def events(self, events: list[Event]) -> None:
        """Take market events and `Malformed`, also those that come before `connected`: they are real."""


class FeedRunner:
    """Keeps one connection to an exchange.

    Remote faults lead to a new connection after a delay; anything else is our bug and propagates.
    """

    def __init__(
        self,
        *,
        codec_factory: Callable[[], Codec],
        url: str,
        sink: FeedSink,
        now_ns: Callable[[], int],
        rng: random.Random,
        log: FilteringBoundLogger,
        ack_timeout_s: float = 10.0,
        tap: Callable[[int, bytes], None] | None = None,
    ) -> None:
        """Set up; `tap` sees every frame as it came, with the time of its receipt, before it is understood."""
        self._tap = tap
        self._codec_factory, self._url, self._sink = codec_factory, url, sink
        self._now_ns, self._rng, self._log = now_ns, rng, log
        self._ack_timeout_s = ack_timeout_s
        self._backoff = Backoff(rng)
        self._down_since_s: float | None = None
        self._last_reason = ""
        self._malformed: dict[str, tuple[float, int]] = {}
        self.state = State.CLOSED
        """Where the present connection is in its life."""

    async def run(self, stop: asyncio.Event) -> None:
        """Feed the sink until `stop` is set.

        Raises:
            RequestRefused: the address is none.

        """
        try:
            async with asyncio.TaskGroup() as group:
                life = group.create_task(self._life(), name=f"feed {self._url}")
                stopping = group.create_task(stop.wait(), name=f"feed stop {self._url}")
                stopping.add_done_callback(lambda _: life.cancel())
        except BaseExceptionGroup as failed:  # only `life` can fail
            raise failed.exceptions[0] from None

    async def _life(self) -> None:
        loop = asyncio.get_running_loop()
        excused: frozenset[str] = frozenset()
        while True:
            began_s = loop.time()
            codec = self._codec_factory()
            session = self._session(codec, excused)
            retry_after_s = 0.0
            try:
                await self._connection(codec, session)
            except RemoteError as error:
                session.lost(str(error))
                retry_after_s = error.retry_after_s if isinstance(error, RateLimited) else 0.0
            self.state = session.state
            now_s = loop.time()
            self._down(session.reason, now_s)
            excused = session.mute
            delay_s = self._backoff.delay_s(live_s=session.live_for_s(now_s), since_attempt_s=now_s - began_s)
            await asyncio.sleep(max(delay_s, retry_after_s))

    def _session(self, codec: Codec, excused: frozenset[str]) -> Session:
        # Connections that were made together are not to expire together.
        lifetime_s = codec.lifetime_s * self._rng.uniform(0.9, 1.0)
        limits = Limits(silence_s=codec.silence_s, pace_s=codec.mark_silence_s, lifetime_s=lifetime_s)
        subscription = Subscription(
            codec.subscribe(),
            confirm=codec.confirm(),
            streams=codec.streams,
            spacing_s=codec.request_spacing_s,
            ack_timeout_s=self._ack_timeout_s,
        )
        return Session(subscription, limits, paced=[market.symbol for market in codec.markets], excused=excused)

    async def _connection(self, codec: Codec, session: Session) -> None:
        """Live through one connection, until the session is over or the connection lost."""
        loop = asyncio.get_running_loop()
        self.state = session.state
        try:
            async with connect(self._url) as connection:
                session.opened(loop.time())
                while not session.over:
                    self.state = session.state
                    request = session.due(loop.time())
                    if request is not None:
                        await connection.send(request)
                    await self._read_until_deadline(connection, codec, session)
        except asyncio.CancelledError:
            session.stop()
            raise
        session.lost("")

    async def _read_until_deadline(self, connection: Connection, codec: Codec, session: Session) -> None:
        try:
            async with asyncio.timeout_at(session.deadline_s()) as scope:
                await self._read(connection, codec, session)
        except TimeoutError:
            if not scope.expired():
                raise
            session.tick(asyncio.get_running_loop().time())

    async def _read(self, connection: Connection, codec: Codec, session: Session) -> None:
        """Take frames until the exchange answers a request: what is to be done next may have changed."""
        time_s, now_ns = asyncio.get_running_loop().time, self._now_ns
        frames, busy_s = 0, 0.0
        while True:
            frame = await connection.recv()  # does not suspend while frames are queued
            began_s, receive_ns = time_s(), now_ns()
            if self._tap:
                self._tap(receive_ns, frame)
            if self._take(codec.decode(frame, receive_ns), session, began_s):
                return
            frames, busy_s = frames + 1, busy_s + time_s() - began_s
            if frames >= _BURST_FRAMES or busy_s >= _BURST_S:
                await asyncio.sleep(0)
                frames, busy_s = 0, 0.0

    def _take(self, events: list[Event], session: Session, now_s: float) -> bool:
        """Hand a frame's events on; tell whether it was an answer to a request."""
        if not events:
            return False
        first = events[0]
        if isinstance(first, Ack | Refusal | Subscriptions):
            self._answer(first, session, now_s)
            return True
        for event in events:
            if isinstance(event, Malformed):
                self._log_malformed(event, now_s)
                continue
            session.data(now_s)
            if isinstance(event, MarkPrice):
                session.paced(event.market.symbol, now_s)
        self._sink.events(events)
        return False

    def _answer(self, event: Ack | Refusal | Subscriptions, session: Session, now_s: float) -> None:
        before = session.state
        session.control(event, now_s)
        if session.state is State.LIVE and before is not State.LIVE:
            self._up(now_s)

    def _up(self, now_s: float) -> None:
        if self._down_since_s is None:
            self._log.info("feed_connected", url=self._url)
        else:
            self._log.info("feed_restored", url=self._url, outage_s=round(now_s - self._down_since_s, 3))
        self._down_since_s = None
        self._sink.connected()

    def _down(self, reason: str, now_s: float) -> None:
        """Tell of a loss once; later attempts of the same outage speak up only when the reason changes."""
        if self._down_since_s is None:
            self._down_since_s = now_s
            self._log.warning("feed_lost", url=self._url, reason=reason)
            self._sink.lost(reason)
        elif reason != self._last_reason:
            self._log.info("feed_retry", url=self._url, reason=reason)
        self._last_reason = reason

    def _log_malformed(self, event: Malformed, now_s: float) -> None:
        since_s, untold = self._malformed.get(event.kind, (-_MALFORMED_LOG_S, 0))
        if now_s - since_s < _MALFORMED_LOG_S:
            self._malformed[event.kind] = (since_s, untold + 1)
            return
        self._malformed[event.kind] = (now_s, 0)
        self._log.warning("feed_malformed", url=self._url, kind=event.kind, detail=event.detail, untold=untold)
