"""The life of one connection as a table: what may happen in which state, and when something is overdue.

Pure: the shell reports what happened with its monotonic clock, asks what to send and until when to wait.
"""

import math
from collections.abc import Collection, Mapping
from enum import StrEnum
from types import MappingProxyType

import msgspec

from feeds.events import Ack, Refusal, Subscriptions
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
    """How long a connection may live, and be quiet."""

    silence_s: float
    """Without any market data."""
    pace_s: float
    """Without a word from one paced key."""
    lifetime_s: float
    """Since it was opened."""


class Session:
    """One connection. Paced keys are those from which something is due at a known pace (mark prices, by market).

    An `excused` key was silent through the whole connection before; it is watched again once it is heard, so that one
    dead market does not tear down the connection of the others over and over.
    """

    def __init__(
        self,
        subscription: Subscription,
        limits: Limits,
        *,
        paced: Collection[str] = (),
        excused: Collection[str] = (),
    ) -> None:
        self.state = State.CONNECTING
        self.reason = ""
        """Why the session left the good states; empty until then."""
        self._subscription, self._limits = subscription, limits
        self._paced, self._unheard, self._excused = frozenset(paced), set(paced), set(excused)
        self._opened_s = self._live_s = self._data_s = math.inf
        self._heard_s: dict[str, float] = {}

    @property
    def over(self) -> bool:
        """Whether the connection is to be closed."""
        return self.state in (State.STALE, State.CLOSING, State.CLOSED)

    @property
    def mute(self) -> frozenset[str]:
        """Paced keys that stayed silent all along: what to excuse in the next session."""
        return frozenset(self._unheard & self._excused)

    def live_for_s(self, now_s: float) -> float:
        """Return for how long everything has been confirmed, s; 0 if it never was."""
        return max(0.0, now_s - self._live_s)

    def opened(self, now_s: float) -> None:
        """Note that the websocket is open."""
        self._fire(Happening.OPENED)
        self._opened_s = now_s

    def due(self, now_s: float) -> str | None:
        """Hand over the next request to send, if its time has come."""
        return self._subscription.due(now_s) if self.state is State.SUBSCRIBING else None

    def data(self, now_s: float) -> None:
        """Note that market data arrived, of whatever stream."""
        self._fire(Happening.DATA)
        self._data_s = now_s

    def paced(self, key: str, now_s: float) -> None:
        """Note that the paced `key` was heard."""
        self._heard_s[key] = now_s
        self._unheard.discard(key)

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
            self._live_s = self._data_s = now_s
            self._heard_s = dict.fromkeys(self._paced - self.mute, now_s)
        elif subscription.absent or subscription.unasked:
            self._fire(Happening.REFUSED, _mismatch(subscription))

    def deadline_s(self) -> float:
        """Return the monotonic second at which to call `due` and `tick` again, if nothing happens before."""
        if self.state is State.SUBSCRIBING:
            return min(self._subscription.send_at_s, self._subscription.overdue_at_s)
        if self.state is not State.LIVE:
            return math.inf
        heard_s = min(self._heard_s.values(), default=math.inf)
        limits = self._limits
        return min(self._data_s + limits.silence_s, heard_s + limits.pace_s, self._opened_s + limits.lifetime_s)

    def tick(self, now_s: float) -> None:
        """Let pass what is overdue at `now_s`."""
        limits = self._limits
        if self.state is State.SUBSCRIBING and now_s >= self._subscription.overdue_at_s:
            self._fire(Happening.OVERDUE, f"no answer to request {self._subscription.unanswered}")
        elif self.state is State.LIVE:
            silent = sorted(key for key, heard_s in self._heard_s.items() if now_s - heard_s >= limits.pace_s)
            if now_s - self._data_s >= limits.silence_s:
                self._fire(Happening.SILENCE, f"no market data for {limits.silence_s:g} s")
            elif silent:
                self._excused.update(silent)
                self._fire(Happening.SILENCE, f"silent for {limits.pace_s:g} s while others flow: {_names(silent)}")
            elif now_s - self._opened_s >= limits.lifetime_s:
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
    return "; ".join(f"{what}: {_names(names)}" for what, names in parts if names)


def _names(names: Collection[str]) -> str:
    """Join names for a log line, ten at most."""
    shown = list(names)[:10]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def mermaid() -> str:
    """Draw the table as a mermaid state diagram; what changes nothing is left out."""
    edges = [
        f"    {state} --> {after}: {happening}"
        for state, row in TRANSITIONS.items()
        for happening, after in row.items()
        if after is not state
    ]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.CONNECTING}", *edges, f"    {State.CLOSED} --> [*]"])
