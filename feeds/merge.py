"""One stream of trades out of several connections that carry the same, so that one may take over from another.

The eldest connection leads: what it says is handed on at once. What a younger one says waits, until the leader has said
it too, or is gone. Where trades are numbered the first arrival wins instead, whichever connection it comes on; a number
that is ahead waits for those before it. So a connection is replaced without a trade lost or told twice:

- numbered: by the numbers;
- unique ids: by the ids, which the market's sequence knows anyway;
- no ids: by counting rows alike. Both connections are sent the same rows, so a row that came n times on each is n
  trades. Of the time at which the younger one began, and before, only the elder is believed: it alone saw all of it.

Pure. One `Merge` per group of connections.
"""

from collections import Counter, deque
from collections.abc import Iterable

from feeds.events import Event, Kline, Malformed, MarketEvent, MarketTrade, MarkPrice
from feeds.market import NS_PER_S, Trade
from feeds.traits import Identity, Traits

MEMORY_NS = 30 * NS_PER_S
"""How far apart, by the exchange's time, two connections may say the same."""
HELD_MAX = 100_000
"""Trades of one market held back; past it the oldest are let go, and the sequence shows that they are missing."""


class _Market:
    """One market's trades over all lanes."""

    def __init__(self) -> None:
        self.last: int | None = None
        """Newest number handed on."""
        self.ahead: dict[int, MarketTrade] = {}
        """Numbered trades that wait for those before them."""
        self.newest: dict[int, int] = {}
        """Newest number by lane."""
        self.told: deque[Trade] = deque(maxlen=HELD_MAX)
        """What was handed on lately."""
        self.held: dict[int, deque[MarketTrade]] = {}
        """What younger lanes said that may not have been handed on yet."""
        self.began_ns: dict[int, int] = {}
        """Time of a younger lane's first trade."""

    def tell(self, event: MarketTrade) -> MarketTrade:
        """Remember what is handed on."""
        self.told.append(event.trade)
        horizon_ns = event.trade.event_time_ns - MEMORY_NS
        while self.told[0].event_time_ns < horizon_ns:
            self.told.popleft()
        for held in self.held.values():
            while held and held[0].trade.event_time_ns < horizon_ns:
                held.popleft()
        return event


class Merge:
    """Lanes are connections, numbered as they join."""

    def __init__(self, traits: Traits) -> None:
        self._identity = traits.identity
        self._lanes: list[int] = []
        self._grace_ns = traits.grace_ns
        self._confirmed = 0
        self._began_ns: dict[int, int] = {}
        """Exchange time of a lane's first mark price once it carried everything; only of such as joined another.

        Trades and candles do not tell: a new connection may begin with old ones.
        """
        self._reached_ns: dict[int, int] = {}
        """Newest exchange time on each lane since there were several."""
        self._markets: dict[str, _Market] = {}
        self.lost = 0
        """Trades that a lane proved to exist and that none delivered."""

    def join(self, lane: int) -> None:
        """Let `lane` take part, from its first frame on."""
        self._lanes.append(lane)

    def confirm(self, lane: int) -> list[Event]:
        """Note that `lane` carries everything: it goes before those that do not yet; return what it had said more."""
        led = self._lanes[0]
        self._lanes.remove(lane)
        self._lanes.insert(self._confirmed, lane)
        self._confirmed += 1
        if self._identity is Identity.NUMBERED or self._lanes[0] == led:
            return []
        return [event for market in self._markets.values() for event in self._taken_over(market, lane)]

    def take(self, lane: int, events: list[Event]) -> list[Event]:
        """Take what a lane says; return what is to be handed on."""
        leads = lane == self._lanes[0]
        if len(self._lanes) > 1:
            self._note_times(lane, events)
        out: list[Event] = []
        for event in events:
            if isinstance(event, MarketTrade):
                out += self._trade(lane, event, leads=leads)
            elif isinstance(event, Malformed) or (leads and not self._outruns(event)):
                out.append(event)
        return out

    def _note_times(self, lane: int, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, MarketEvent):
                time_ns = event.trade.event_time_ns if isinstance(event, MarketTrade) else event.event_time_ns
                self._reached_ns[lane] = max(time_ns, self._reached_ns.get(lane, 0))
                if isinstance(event, MarkPrice) and lane in self._lanes[: self._confirmed]:
                    self._began_ns.setdefault(lane, time_ns)

    def _outruns(self, event: Event) -> bool:
        """Tell whether an event says how late it is while trades of its market wait: it would close their candle."""
        if not isinstance(event, MarkPrice | Kline) or (isinstance(event, Kline) and event.candle.closed):
            return False
        market = self._markets.get(event.market.symbol)
        return market is not None and bool(market.ahead)

    def _trade(self, lane: int, event: MarketTrade, *, leads: bool) -> list[MarketTrade]:
        market = self._markets.get(event.market.symbol)
        if market is None:
            market = self._markets[event.market.symbol] = _Market()
        if self._identity is Identity.NUMBERED:
            return self._numbered(market, lane, event)
        if leads:
            return [market.tell(event)]
        market.began_ns.setdefault(lane, event.trade.event_time_ns)
        held = market.held.setdefault(lane, deque(maxlen=HELD_MAX))
        held.append(event)
        return []

    def _numbered(self, market: _Market, lane: int, event: MarketTrade) -> list[MarketTrade]:
        number = event.trade.id
        market.newest[lane] = number
        if len(self._lanes) == 1:
            market.last = number
            return [event]
        if market.last is None:
            market.last = number - 1
        if number > market.last:
            market.ahead[number] = event
        elif all(market.newest.get(each, 0) < market.last for each in self._lanes):
            # It runs backwards on every lane: the newest was false, or the exchange has numbered afresh.
            market.ahead, market.last = {number: event}, number - 1
        return self._contiguous(market)

    def _contiguous(self, market: _Market) -> list[MarketTrade]:
        """Hand on what follows directly, and step over numbers that no lane can still deliver.

        A lane that does not carry everything yet is not waited for: it may not carry this market.
        """
        out = []
        lanes = self._lanes[: self._confirmed] or self._lanes
        while market.ahead:
            assert market.last is not None
            number = market.last + 1
            if number not in market.ahead:
                if len(market.ahead) < HELD_MAX and any(market.newest.get(lane, 0) < number for lane in lanes):
                    break
                number = self._step_over(market)
            out.append(market.ahead.pop(number))
            market.last = number
        return out

    def _step_over(self, market: _Market) -> int:
        """Give up what is missing before the next number; a hole beyond all reason is one false number."""
        assert market.last is not None
        number = min(market.ahead)
        hole = number - market.last - 1
        self.lost += hole if hole <= HELD_MAX else 1
        return number

    def agrees(self, lane: int) -> bool:
        """Tell whether `lane` could go on alone: in every market it spoke of, the leader is past where it began.

        Or has told all that it said there, where nothing has been traded since.
        """
        for market in self._markets.values():
            if self._identity is Identity.NUMBERED:
                if market.ahead:
                    return False
            elif held := market.held.get(lane):
                newest_ns = market.told[-1].event_time_ns if market.told else 0
                if newest_ns <= market.began_ns[lane] and _rows(event.trade for event in held) - _rows(market.told):
                    return False
        return True

    def _overlap(self, lane: int, heir: int) -> bool:
        """Tell whether `heir` carried everything before `lane` fell silent: each speaks in order of time."""
        began_ns = self._began_ns.get(heir)
        return began_ns is not None and self._reached_ns.get(lane, 0) >= began_ns + self._grace_ns

    def bridged(self, lane: int) -> bool:
        """Tell whether nothing can be missing if `lane` ends now: another leads, or can take over without a break."""
        others = self._lanes[: self._confirmed]
        return lane != self._lanes[0] or (len(others) > 1 and lane == others[0] and self._overlap(lane, others[1]))

    def leave(self, lane: int) -> list[Event]:
        """Let go of `lane`; return what the others had said and it had not."""
        led = self._lanes[0] == lane
        self._began_ns.pop(lane, None)
        self._reached_ns.pop(lane, None)
        self._confirmed -= self._lanes.index(lane) < self._confirmed
        self._lanes.remove(lane)
        out: list[Event] = []
        for market in self._markets.values():
            market.newest.pop(lane, None)
            market.held.pop(lane, None)
            if self._identity is Identity.NUMBERED:
                out += self._contiguous(market)
                if len(self._lanes) <= 1:
                    out += self._flush(market)
                if not self._lanes:
                    market.last = None  # what went by meanwhile comes on no connection: it is not waited for
            elif led and self._lanes:
                out += self._taken_over(market, self._lanes[0])
        return out

    def _flush(self, market: _Market) -> list[MarketTrade]:
        """Hand on what is still ahead, in order: with a single lane nothing can come before it any more."""
        out = []
        while market.ahead:
            market.last = self._step_over(market)
            out.append(market.ahead.pop(market.last))
        return out

    def _taken_over(self, market: _Market, lane: int) -> list[MarketTrade]:
        """Hand on what the new leader had said and the old one had not."""
        held = market.held.pop(lane, deque())
        began_ns = market.began_ns.pop(lane, 0)
        told = _rows(market.told)
        out = []
        for event in held:
            row = _row(event.trade)
            if told[row]:
                told[row] -= 1
            elif event.trade.event_time_ns > began_ns or event.trade.id:
                out.append(market.tell(event))
        return out


def _rows(trades: Iterable[Trade]) -> Counter[tuple[int, ...]]:
    return Counter(map(_row, trades))


def _row(trade: Trade) -> tuple[int, ...]:
    """Return what makes two rows the same: the id, or where there is none all that was said."""
    return (trade.id,) if trade.id else (0, trade.event_time_ns, trade.price, trade.size, trade.taker_is_buyer)
