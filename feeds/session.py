"""The life of one connection as a table: what may happen in which state, and when something is overdue.

Pure: the shell reports what happened with its monotonic clock, asks what to send and until when to wait.
"""

import math
from collections.abc import Collection, Mapping
from enum import StrEnum
from types import MappingProxyType

import msgspec

from feeds.events import Ack, Kline, MarketEvent, MarketTrade, Refusal, Subscriptions
from feeds.silence import Watch, names
from feeds.subscription import Subscription


class State(StrEnum):
    """Where a connection is in its life."""

    CONNECTING = "connecting"
    SUBSCRIBING = "subscribing"
    LIVE = "live"
    STALE = "stale"
    CLOSING = "closing"
    CLOSED = "closed"


class Happening(StrEnum):
    """What can happen to a connection."""

    OPENED = "opened"
    DATA = "data"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    OVERDUE = "overdue"
    SILENCE = "silence"
    EXPIRED = "expired"
    STOP = "stop"
    LOST = "lost"


TRANSITIONS: Mapping[State, Mapping[Happening, State]] = MappingProxyType(
    {
        State.CONNECTING: {
            Happening.OPENED: State.SUBSCRIBING,
            Happening.STOP: State.CLOSING,
            Happening.LOST: State.CLOSED,
        },
        State.SUBSCRIBING: {
            Happening.DATA: State.SUBSCRIBING,
            Happening.CONFIRMED: State.LIVE,
            Happening.REFUSED: State.CLOSING,
            Happening.OVERDUE: State.CLOSING,
            Happening.STOP: State.CLOSING,
            Happening.LOST: State.CLOSED,
        },
        State.LIVE: {
            Happening.DATA: State.LIVE,
            Happening.REFUSED: State.CLOSING,
            Happening.SILENCE: State.STALE,
            Happening.EXPIRED: State.CLOSING,
            Happening.STOP: State.CLOSING,
            Happening.LOST: State.CLOSED,
        },
        State.STALE: {Happening.STOP: State.CLOSING, Happening.LOST: State.CLOSED},
        State.CLOSING: {Happening.STOP: State.CLOSING, Happening.LOST: State.CLOSED},
        State.CLOSED: {},
    }
)


class IllegalTransition(RuntimeError):
    """The shell reported what cannot happen in the present state: our bug."""


def following(state: State, happening: Happening) -> State:
    """Return the state after `happening`.

    Raises:
        IllegalTransition: it cannot happen in `state`.

    """
    after = TRANSITIONS[state].get(happening)
    if after is None:
        raise IllegalTransition(f"{happening} while {state}")
    return after


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a connection may live, and be quiet; silence that is unusual ends it sooner (`feeds.silence`)."""

    silence_s: float
    """Without any market data."""
    pace_s: float
    """Without the mark price of one market."""
    kline_lag_s: float = 5.0
    """How much older than a kline the newest trade in it may be."""
    lifetime_s: float
    """Since it was opened."""
    ping_every_s: float | None = None
    """How often the exchange wants a sign of life; None: never."""


class Session:
    """One connection. `markets` are those whose mark prices are due at a known pace.

    An `excused` market was mute through the whole connection before; it is watched again once it is heard, so that one
    dead market does not tear down the connection of the others over and over.
    """

    def __init__(
        self,
        subscription: Subscription,
        limits: Limits,
        *,
        markets: Collection[str] = (),
        excused: Collection[str] = (),
    ) -> None:
        self.state = State.CONNECTING
        self.reason = ""
        """Why the session left the good states; empty until then."""
        self._subscription, self._limits = subscription, limits
        self._markets, self._unheard, self._excused = frozenset(markets), set(markets), set(excused)
        self._opened_s = self._live_s = math.inf
        self._watch: Watch | None = None
        self._ping_at_s = math.inf

    @property
    def over(self) -> bool:
        """Whether the connection is to be closed."""
        return self.state in (State.STALE, State.CLOSING, State.CLOSED)

    @property
    def mute(self) -> frozenset[str]:
        """Markets that stayed mute all along: what to excuse in the next session."""
        return frozenset(self._unheard & self._excused)

    def live_for_s(self, now_s: float) -> float:
        """Return for how long everything has been confirmed, s; 0 if it never was."""
        return max(0.0, now_s - self._live_s)

    def opened(self, now_s: float) -> None:
        """Note that the websocket is open."""
        self._fire(Happening.OPENED)
        self._opened_s = now_s
        self._ping_at_s = now_s + (self._limits.ping_every_s or math.inf)

    def ages_at_s(self, lead_s: float) -> float:
        """Return when to begin replacing an open connection: `lead_s` before its end, or in its last quarter."""
        lifetime_s = self._limits.lifetime_s
        return self._opened_s + lifetime_s - min(lead_s, 0.25 * lifetime_s)

    def due(self, now_s: float) -> str | None:
        """Hand over the next request to send, if its time has come."""
        return self._subscription.due(now_s) if self.state is State.SUBSCRIBING else None

    def ping_due(self, now_s: float) -> bool:
        """Tell whether a sign of life is due; it then counts as given."""
        if now_s < self._ping_at_s:
            return False
        self._ping_at_s = now_s + (self._limits.ping_every_s or math.inf)
        return True

    def hear(self, event: MarketEvent, now_s: float) -> None:
        """Note market data, of whatever stream."""
        if self.state is not State.LIVE:  # where data changes nothing: this is the hot path
            self._fire(Happening.DATA)
        symbol, watch = event.market.symbol, self._watch
        if watch:
            watch.data(now_s)
        if isinstance(event, MarketTrade):
            if watch:
                watch.trade(symbol, now_s)
        elif isinstance(event, Kline):
            if watch:
                watch.kline(symbol, event.spec.text, event.candle, now_s)
        else:
            self._unheard.discard(symbol)
            if watch:
                watch.mark(symbol, now_s)

    def control(self, event: Ack | Refusal | Subscriptions, now_s: float) -> None:
        """Note an answer of the exchange; may confirm or end the session."""
        if isinstance(event, Refusal):
            self._fire(Happening.REFUSED, f"refused: {event.code} {event.message}")
            return
        if self.state is not State.SUBSCRIBING:
            return
        subscription = self._subscription
        if isinstance(event, Ack):
            subscription.acked(event.request_id)
        else:
            subscription.listed(event.request_id, event.streams)
        if subscription.complete:
            self._fire(Happening.CONFIRMED)
            self._live_s = now_s
            limits = self._limits
            self._watch = Watch(
                now_s,
                self._markets - self.mute,
                silence_s=limits.silence_s,
                pace_s=limits.pace_s,
                kline_lag_s=limits.kline_lag_s,
            )
        elif subscription.absent or subscription.unasked:
            self._fire(Happening.REFUSED, _mismatch(subscription))

    def deadline_s(self) -> float:
        """Return the monotonic second at which to call `due` and `tick` again, if nothing happens before."""
        if self.state is State.SUBSCRIBING:
            return min(self._subscription.send_at_s, self._subscription.overdue_at_s, self._ping_at_s)
        if self._watch is None or self.state is not State.LIVE:
            return math.inf
        return min(self._watch.overdue_at_s(), self._opened_s + self._limits.lifetime_s, self._ping_at_s)

    def tick(self, now_s: float) -> None:
        """Let pass what is overdue at `now_s`."""
        if self.state is State.SUBSCRIBING and now_s >= self._subscription.overdue_at_s:
            self._fire(Happening.OVERDUE, f"no answer to request {self._subscription.unanswered}")
        elif self._watch and self.state is State.LIVE:
            if dead := self._watch.dead(now_s):
                self._excused.update(self._watch.mute(now_s))
                self._fire(Happening.SILENCE, dead)
            elif now_s - self._opened_s >= self._limits.lifetime_s:
                self._fire(Happening.EXPIRED, "the connection reached its age limit")

    def stop(self) -> None:
        """Note that we are asked to end."""
        self._fire(Happening.STOP, "stopped")

    def lost(self, reason: str) -> None:
        """Note that the websocket is gone."""
        self._fire(Happening.LOST, reason)

    def _fire(self, happening: Happening, reason: str = "") -> None:
        self.state = following(self.state, happening)
        self.reason = self.reason or reason


def _mismatch(subscription: Subscription) -> str:
    parts = (("not subscribed", subscription.absent), ("never asked for", subscription.unasked))
    return "; ".join(f"{what}: {names(streams)}" for what, streams in parts if streams)


def mermaid() -> str:
    """Draw the table as a mermaid state diagram; what changes nothing is left out."""
    edges = [
        f"    {state} --> {after}: {happening}"
        for state, row in TRANSITIONS.items()
        for happening, after in row.items()
        if after is not state
    ]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.CONNECTING}", *edges, f"    {State.CLOSED} --> [*]"])
