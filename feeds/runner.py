"""One feed's life: connect, subscribe, read, replace connections before they end, and again after every loss."""

import asyncio
import contextlib
import math
import random
from collections.abc import Callable
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from feeds.backoff import Backoff
from feeds.errors import FORBIDDEN_S, Forbidden, RateLimited, RemoteError
from feeds.events import Ack, Entry, Event, Malformed, MarketEvent, Refusal, Reply, Subscriptions
from feeds.exchanges.base import Codec
from feeds.merge import Merge
from feeds.session import Limits, Session, State
from feeds.subscription import Subscription
from feeds.transport import Connection, connect

_BURST_FRAMES = 200
_BURST_S = 0.005
"""So much work, by count or by time, is done before the event loop gets its turn."""
_MALFORMED_LOG_S = 60.0
ROLLOVER_LEAD_S = 120.0
"""So long before a connection reaches its age limit its replacement is made; at most a quarter of the limit."""
OVERLAP_S = 2.0
"""Least time for which a connection and its replacement both run; at most a sixteenth of the limit."""
PROOF_S = 10.0
"""For so long an old connection is kept until it has proven that nothing is missing; at most an eighth of the limit."""
_AGREE_POLL_S = 0.05


Tap = Callable[[Entry, int, int, bytes], None]
"""Is told what happens on a connection: what, the connection's number, our time in ns, and the frame or the reason."""


class FeedSink(Protocol):
    """Where a feed delivers. All calls are synchronous and come in order."""

    def connected(self) -> None:
        """Every stream is confirmed: from here on nothing is missed."""

    def lost(self, reason: str) -> None:
        """Trades may be missing from now on, until `connected`. Once per outage."""

    def interrupted(self) -> None:
        """Trades may be missing before the next event: a connection ended before another had all that it had."""

    def rolled_over(self, lost: int) -> None:
        """Note that a connection was replaced; `lost` trades are proven to exist and came on neither."""

    def events(self, events: list[Event]) -> None:
        """Take market events and `Malformed`, also those that come before `connected`: they are real."""


class _Stopped(Exception):
    """Ends the group of connections."""


class _Lane:
    """One connection, from its first attempt to its end."""

    def __init__(self, number: int, codec: Codec, session: Session, began_s: float) -> None:
        self.number, self.codec, self.session, self.began_s = number, codec, session, began_s
        self.turn = asyncio.Event()
        """Set when it grows old or has ended."""
        self.ages_at_s = math.inf
        self.retry_after_s = 0.0
        self.task: asyncio.Task[None]


class FeedRunner:
    """Keeps connections to an exchange, all for the same streams: one, or `copies`, or one more while one is replaced.

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
        copies: int = 1,
        tap: Tap | None = None,
        proxy: str | None = None,
        hindered: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Set up; `tap` sees every frame as it came, before it is understood, and where connections begin and end.

        `hindered` is told when during an outage something else stands in the way than what began it.
        """
        self._tap, self._proxy, self._hindered = tap, proxy, hindered
        self._codec_factory, self._url, self._sink = codec_factory, url, sink
        self._now_ns, self._rng, self._log = now_ns, rng, log
        self._ack_timeout_s, self._copies = ack_timeout_s, copies
        self._merge = Merge(codec_factory().traits)
        self._opened = 0
        self._lanes: list[_Lane] = []
        self._live: set[int] = set()
        self._down_since_s: float | None = None
        self._last_reason = ""
        self._malformed: dict[str, tuple[float, int]] = {}

    @property
    def state(self) -> State:
        """Where the connection is in its life; live if any is, else that of the newest."""
        return State.LIVE if self._live else self._lanes[-1].session.state if self._lanes else State.CLOSED

    async def run(self, stop: asyncio.Event) -> None:
        """Feed the sink until `stop` is set.

        Raises:
            RequestRefused: the address is none.

        """
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._copies):
                    group.create_task(self._life(group), name=f"feed {self._url}")
                await stop.wait()
                raise _Stopped
        except ExceptionGroup as failed:  # only connections can fail
            error = failed.exceptions[0]
            if not isinstance(error, _Stopped):
                raise error from None

    def renew(self) -> None:
        """Replace every connection by one for what `codec_factory` makes now; nothing is lost meanwhile."""
        for lane in self._lanes:
            lane.turn.set()

    async def _life(self, group: asyncio.TaskGroup) -> None:
        """Keep one connection, and for a while its replacement beside it."""
        backoff = Backoff(self._rng)
        lane = self._open(group, frozenset())
        while True:
            await lane.turn.wait()
            if lane.task.done():
                await self._rest(lane, backoff)
                lane = self._open(group, lane.session.mute)
            else:
                lane = await self._replace(group, lane, backoff)

    def _open(self, group: asyncio.TaskGroup, excused: frozenset[str]) -> _Lane:
        codec = self._codec_factory()
        self._opened += 1
        lane = _Lane(self._opened, codec, self._session(codec, excused), asyncio.get_running_loop().time())
        self._lanes.append(lane)
        lane.task = group.create_task(self._lane(lane), name=f"connection {lane.number} {self._url}")
        lane.task.add_done_callback(lambda _: lane.turn.set())
        return lane

    async def _rest(self, lane: _Lane, backoff: Backoff) -> None:
        now_s = asyncio.get_running_loop().time()
        delay_s = backoff.delay_s(live_s=lane.session.live_for_s(now_s), since_attempt_s=now_s - lane.began_s)
        await asyncio.sleep(max(delay_s, lane.retry_after_s))

    async def _replace(self, group: asyncio.TaskGroup, lane: _Lane, backoff: Backoff) -> _Lane:
        """Make the next connection before this one ends, and end this one once the next has all that it has."""
        time_s = asyncio.get_running_loop().time
        heir = self._open(group, lane.session.mute)
        overlap_s = min(OVERLAP_S, lane.codec.lifetime_s / 16)
        proof_s = min(PROOF_S, lane.codec.lifetime_s / 8)

        def ready() -> bool:
            if heir.number not in self._live or not self._merge.agrees(heir.number):
                return False
            live_s = heir.session.live_for_s(time_s())
            return live_s >= (overlap_s if self._merge.bridged(lane.number) else proof_s)

        while not ready():
            if lane.task.done():
                return heir
            if heir.task.done():
                await self._rest(heir, backoff)
                heir = self._open(group, lane.session.mute)
            await asyncio.sleep(_AGREE_POLL_S)
        lost = self._merge.lost
        lane.task.cancel()
        await asyncio.wait([lane.task])
        lost = self._merge.lost - lost
        self._log.info(
            "feed_rolled_over", url=self._url, overlap_s=round(heir.session.live_for_s(time_s()), 3), lost=lost
        )
        self._sink.rolled_over(lost)
        return heir

    def _session(self, codec: Codec, excused: frozenset[str]) -> Session:
        # Connections that were made together are not to expire together.
        limits = Limits(
            silence_s=codec.silence_s,
            pace_s=codec.mark_silence_s,
            kline_lag_s=codec.kline_lag_s,
            lifetime_s=codec.lifetime_s * self._rng.uniform(0.9, 1.0),
            ping_every_s=codec.ping_every_s,
        )
        subscription = Subscription(
            codec.subscribe(),
            confirm=codec.confirm(),
            streams=codec.streams,
            spacing_s=codec.request_spacing_s,
            ack_timeout_s=self._ack_timeout_s,
        )
        return Session(subscription, limits, markets=[market.symbol for market in codec.markets], excused=excused)

    # ---- one connection

    async def _lane(self, lane: _Lane) -> None:
        """Live through one connection, until the session is over or the connection lost."""
        async with contextlib.AsyncExitStack() as leaving:  # others need not wait until it is closed
            joined = False
            try:
                pings = lane.codec.answers_protocol_pings
                connection = await leaving.enter_async_context(connect(self._url, proxy=self._proxy, ping=pings))
                lane.session.opened(asyncio.get_running_loop().time())
                lane.ages_at_s = lane.session.ages_at_s(ROLLOVER_LEAD_S)
                self._merge.join(lane.number)
                joined = True
                self._tell(Entry.OPENED, lane)
                await self._converse(connection, lane)
                lane.session.lost("")
            except Forbidden as error:
                lane.session.lost(f"refused: {error}")
                lane.retry_after_s = FORBIDDEN_S
            except RemoteError as error:
                lane.session.lost(str(error))
                lane.retry_after_s = error.retry_after_s if isinstance(error, RateLimited) else 0.0
            except asyncio.CancelledError:
                lane.session.stop()
                raise
            finally:
                self._lanes.remove(lane)
                self._live.discard(lane.number)
                if joined:
                    self._tell(Entry.ENDED, lane)
                    bridged = self._merge.bridged(lane.number)
                    self._hand_on(self._merge.leave(lane.number))
                    if not bridged:
                        self._sink.interrupted()
            self._down(lane.session.reason, asyncio.get_running_loop().time())

    async def _converse(self, connection: Connection, lane: _Lane) -> None:
        time_s, session = asyncio.get_running_loop().time, lane.session
        while not session.over:
            if session.ping_due(time_s()):
                await connection.send(lane.codec.ping())
            request = session.due(time_s())
            if request is not None:
                await connection.send(request)
            await self._read_until_deadline(connection, lane)

    async def _read_until_deadline(self, connection: Connection, lane: _Lane) -> None:
        try:
            async with asyncio.timeout_at(min(lane.session.deadline_s(), lane.ages_at_s)) as scope:
                await self._read(connection, lane)
        except TimeoutError:
            if not scope.expired():
                raise
            now_s = asyncio.get_running_loop().time()
            if now_s >= lane.ages_at_s:
                lane.ages_at_s = math.inf
                lane.turn.set()
            lane.session.tick(now_s)

    async def _read(self, connection: Connection, lane: _Lane) -> None:
        """Take frames until the exchange answers a request: what is to be done next may have changed."""
        time_s, now_ns = asyncio.get_running_loop().time, self._now_ns
        frames, busy_s = 0, 0.0
        while True:
            frame = await connection.recv()  # does not suspend while frames are queued
            began_s, receive_ns = time_s(), now_ns()
            if self._tap:
                self._tap(Entry.FRAME, lane.number, receive_ns, frame)
            events = lane.codec.decode(frame, receive_ns)
            if events and type(events[0]) is Reply:
                await connection.send(events[0].text)
            elif self._take(events, lane, began_s):
                return
            frames, busy_s = frames + 1, busy_s + time_s() - began_s
            if frames >= _BURST_FRAMES or busy_s >= _BURST_S:
                await asyncio.sleep(0)
                frames, busy_s = 0, 0.0

    def _take(self, events: list[Event], lane: _Lane, now_s: float) -> bool:
        """Hand a frame's events on; tell whether it was an answer to a request."""
        if not events:
            return False
        last = events[-1]
        # Most are market events, and to tell that something is no instance of a message type takes long.
        if not isinstance(last, MarketEvent) and isinstance(last, Ack | Refusal | Subscriptions):
            self._take(events[:-1], lane, now_s)
            self._answer(last, lane, now_s)
            return True
        for event in events:
            if isinstance(event, MarketEvent):
                lane.session.hear(event, now_s)
            elif isinstance(event, Malformed):
                self._log_malformed(event, now_s)
        self._hand_on(self._merge.take(lane.number, events))
        return False

    def _tell(self, entry: Entry, lane: _Lane) -> None:
        if self._tap:
            self._tap(entry, lane.number, self._now_ns(), lane.session.reason.encode())

    def _hand_on(self, events: list[Event]) -> None:
        if events:
            self._sink.events(events)

    def _answer(self, event: Ack | Refusal | Subscriptions, lane: _Lane, now_s: float) -> None:
        before = lane.session.state
        lane.session.control(event, now_s)
        if lane.session.state is State.LIVE and before is not State.LIVE:
            self._tell(Entry.CONFIRMED, lane)
            self._hand_on(self._merge.confirm(lane.number))
            self._live.add(lane.number)
            if len(self._live) == 1:
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
        if self._live:
            self._log.info("feed_copy_lost", url=self._url, reason=reason)
            return
        if self._down_since_s is None:
            self._down_since_s = now_s
            self._log.warning("feed_lost", url=self._url, reason=reason)
            self._sink.lost(reason)
        elif reason != self._last_reason:
            self._log.info("feed_retry", url=self._url, reason=reason)
            self._hindered(reason)
        self._last_reason = reason

    def _log_malformed(self, event: Malformed, now_s: float) -> None:
        since_s, untold = self._malformed.get(event.kind, (-_MALFORMED_LOG_S, 0))
        if now_s - since_s < _MALFORMED_LOG_S:
            self._malformed[event.kind] = (since_s, untold + 1)
            return
        self._malformed[event.kind] = (now_s, 0)
        self._log.warning("feed_malformed", url=self._url, kind=event.kind, detail=event.detail, untold=untold)
