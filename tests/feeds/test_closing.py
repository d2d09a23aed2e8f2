from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.closing import Closer
from feeds.market import NS_PER_DAY, NS_PER_MS, NS_PER_S, SEQ_PER_DAY, Candle, CandleSpec, Market, Origin, Trade
from feeds.sequence import TradeSequence, Verdict
from feeds.stitch import Stitch
from feeds.traits import Identity, Traits
from tests.feeds.trades import made

MARKET = Market(exchange="x", symbol="A/B:B", native="AB", price_decimals=0, size_decimals=0)
MINUTE = CandleSpec.parse("1m")
BEGIN_MS = 60_000 * 1_000
GRACE_MS = 1_000
KLINE_PATIENCE_NS = 10 * NS_PER_S
TRAITS = Traits(identity=Identity.NUMBERED, grace_ns=GRACE_MS * NS_PER_MS, kline_patience_ns=KLINE_PATIENCE_NS)
FIRST = BEGIN_MS // 60_000 + 1
"""Ordinal of the candle that opens at `BEGIN_MS`."""


def closer(text: str = "1m", *, has_kline: bool = True, by_exchange: bool = False) -> Closer:
    new = Closer(MARKET, CandleSpec.parse(text), TRAITS, has_kline=has_kline, by_exchange=by_exchange)
    new.see(BEGIN_MS * NS_PER_MS)
    return new


def at(ms: int) -> int:
    return (BEGIN_MS + ms) * NS_PER_MS


def trade(n: int, ms: int, price: int = 100, size: int = 1) -> Trade:
    return made(n, BEGIN_MS + ms, price, size)


def official(seq: int, trades: list[Trade], carried: int = 100, interval_ms: int = 60_000) -> Candle:
    """Make the exchange's own candle of exactly these trades; an empty one carries a price on."""
    prices = [float(t.price) for t in trades] or [float(carried)]
    return Candle(
        seq=seq, open_time_ns=(seq - 1) * interval_ms * NS_PER_MS, close_time_ns=seq * interval_ms * NS_PER_MS,
        open=prices[0], high=max(prices), low=min(prices), close=prices[-1], volume=float(sum(t.size for t in trades)),
        trades=sum(t.fills for t in trades), closed=True, origin=Origin.EXCHANGE,
    )  # fmt: skip


def told(candles: list[Candle]) -> list[tuple[int, float, str]]:
    return [(candle.seq - FIRST, candle.volume, str(candle.origin)) for candle in candles]


def test_a_trade_past_the_close_closes_every_candle_before_it() -> None:
    c = closer()
    assert c.trade(trade(1, 5)) == c.trade(trade(2, 59_999)) == []
    assert told(c.trade(trade(3, 180_000))) == [(0, 2.0, "trades"), (1, 0.0, "trades"), (2, 0.0, "trades")]
    assert c.frontier == FIRST + 3


def test_an_equal_kline_closes_ours() -> None:
    c = closer()
    trades = [trade(1, 5), trade(2, 59_000, 90)]
    for t in trades:
        c.trade(t)
    assert told(c.kline(official(FIRST, trades))) == [(0, 2.0, "trades")]
    assert (c.frontier, c.take_mismatches()) == (FIRST + 1, [])
    assert c.time(at(80_000)) == [], "it has closed"


def test_the_kline_is_the_candle_where_trades_were_missed() -> None:
    c = closer()
    c.trade(trade(1, 5))
    c.lose()
    c.trade(trade(3, 10))
    assert told(c.kline(official(FIRST, [trade(1, 5), trade(2, 8), trade(3, 10)]))) == [(0, 3.0, "exchange")]
    assert c.take_mismatches() == [], "ours was not whole, so it was no mismatch"
    assert told(c.trade(trade(4, 120_000))) == [(1, 0.0, "trades")]


def test_trades_under_way_are_waited_for_and_then_ours_stands() -> None:
    c = closer()
    trades = [trade(1, 5), trade(2, 59_999)]
    c.trade(trades[0])
    assert c.kline(official(FIRST, trades)) == []
    c.trade(trades[1])
    assert told(c.trade(trade(3, 60_000))) == [(0, 2.0, "trades")]
    assert c.take_mismatches() == []


@pytest.mark.parametrize("by_trade", [True, False])
def test_a_kline_that_differs_from_a_whole_candle_stands_and_is_counted(by_trade: bool) -> None:
    c = closer()
    c.trade(trade(1, 5))
    assert c.kline(official(FIRST, [trade(1, 5), trade(2, 6)])) == []
    closed = c.trade(trade(2, 60_000)) if by_trade else c.time(at(71_000)) + c.time(at(71_000))
    assert told(closed) == [(0, 2.0, "exchange")]
    ((own, exchanges),) = c.take_mismatches()
    assert own.seq == exchanges.seq == FIRST
    assert own.differences(exchanges)
    assert c.take_mismatches() == []


def test_a_quiet_market_closes_on_two_times_past_grace_and_never_on_one() -> None:
    c = closer("5s", has_kline=False)
    c.trade(trade(1, 5))
    assert c.time(at(5_999)) == c.time(at(5_999)) == c.time(at(6_000)) == []
    assert told(c.time(at(6_000)))[0][1:] == (1.0, "trades")
    assert c.time(at(60_000)) == [], "one event far ahead proves no more than the one before it"
    assert c.frontier == BEGIN_MS // 5_000 + 2
    assert [candle.volume for candle in c.time(at(16_000))] == [0.0, 0.0], "up to what both have passed"


def test_where_klines_are_sent_times_wait_longer_for_one() -> None:
    c = closer()
    c.trade(trade(1, 5))
    patience_ms = KLINE_PATIENCE_NS // NS_PER_MS
    for _ in range(3):
        assert c.time(at(60_000 + patience_ms - 1)) == []
    assert c.time(at(60_000 + patience_ms)) == []
    assert told(c.time(at(60_000 + patience_ms))) == [(0, 1.0, "trades")]


def test_a_later_kline_closes_what_lies_before_it() -> None:
    c = closer()
    c.trade(trade(1, 5))
    assert told(c.kline(official(FIRST + 2, []))) == [(0, 1.0, "trades"), (1, 0.0, "trades"), (2, 0.0, "trades")]


def test_a_kline_behind_the_frontier_fills_what_was_missed() -> None:
    c = closer()
    c.trade(trade(1, 5))
    c.lose()
    assert c.trade(trade(3, 60_001)) == [], "a trade was missed in the first minute"
    assert told(c.kline(official(FIRST, [trade(1, 5), trade(2, 9)]))) == [(0, 2.0, "exchange")]


def test_while_in_doubt_only_the_exchange_is_believed() -> None:
    c = closer()
    c.trade(trade(1, 5))
    c.doubt()
    assert c.time(at(75_000)) == c.time(at(75_001)) == [], "trades of the first minute may have been missed"
    assert told(c.kline(official(FIRST + 1, [trade(2, 61_000)]))) == [(1, 1.0, "exchange")]
    assert told(c.trade(trade(3, 180_001))) == [(2, 0.0, "trades")], "its id proved that nothing was missed since"


def test_doubt_before_the_first_trade_means_that_trades_were_missed() -> None:
    c = closer()
    c.doubt()
    assert c.trade(trade(7, 30_000)) == [], "nothing tells whether it is the first of its minute"
    assert told(c.trade(trade(8, 120_000))) == [(1, 0.0, "trades")]


def test_a_price_known_before_an_outage_is_not_carried_over_it() -> None:
    c = closer()
    assert told(c.kline(official(FIRST, []))) == [(0, 0.0, "trades")]
    c.doubt()
    assert c.forming() is None
    c.see(at(100_000))
    assert c.time(at(300_000)) == c.time(at(300_000)) == [], "trades of the outage may have moved it"


def test_without_klines_trades_come_in_unbroken_order_so_there_is_nothing_to_doubt() -> None:
    c = closer("5s", has_kline=False)
    c.doubt()
    c.trade(trade(1, 5))
    c.doubt()
    assert c.time(at(6_000)) == []
    assert [candle.volume for candle in c.time(at(6_000))] == [1.0]


def test_after_a_missed_end_of_a_minute_the_exchanges_close_is_carried_on() -> None:
    c = closer()
    c.trade(trade(1, 5, 100))
    c.lose()
    c.trade(trade(3, 50_000, 100))
    assert told(c.kline(official(FIRST, [trade(1, 5), trade(2, 6), trade(3, 50_000), trade(4, 59_999, 70)])))
    assert c.trade(trade(4, 59_999, 70)) == []
    assert c.late == 1
    (empty,) = c.trade(trade(5, 120_000))
    assert (empty.open, empty.close, empty.volume) == (70.0, 70.0, 0.0)


def test_by_exchange_nothing_closes_but_by_its_kline() -> None:
    c = closer(by_exchange=True)
    c.trade(trade(1, 5))
    assert c.trade(trade(2, 60_000)) == []
    assert told(c.kline(official(FIRST, [trade(1, 5)]))) == [(0, 1.0, "exchange")]
    assert told(c.kline(official(FIRST + 1, [trade(2, 60_000)]))) == [(1, 1.0, "trades")]
    assert c.time(at(200_000)) == c.time(at(200_000)) == []


def test_an_event_candle_closes_with_the_day_on_two_times() -> None:
    c = closer("3t", has_kline=False)
    day_ms = NS_PER_DAY // NS_PER_MS
    c.trade(made(1, 2 * day_ms - 10))
    past_ns = 2 * NS_PER_DAY + GRACE_MS * NS_PER_MS
    assert c.time(past_ns + 30 * NS_PER_S) == []
    assert [candle.seq for candle in c.time(past_ns)] == [SEQ_PER_DAY + 1]
    assert c.frontier == c.late == 0


class Cut(NamedTuple):
    """A lost connection, and when it is back."""

    until: int


class Fetch(NamedTuple):
    """A page of trades asked of the exchange."""

    limit: int


class Message(NamedTuple):
    """What happens, and when (ms); times of marks are ints."""

    arrives: int
    what: Trade | Candle | int | Cut | Fetch


Waits = list[tuple[int, int]]
MINUTES = 6
SPAN_MS = MINUTES * 60_000
waits = st.one_of(st.integers(0, 900), st.integers(0, 30_000))
trade_scripts = st.lists(
    st.tuples(waits, st.integers(90, 110), st.integers(1, 3), st.integers(0, GRACE_MS - 1)), max_size=40
)
mark_scripts = st.lists(st.tuples(st.integers(0, SPAN_MS), st.integers(0, 3_000)), max_size=25)
cut_scripts = st.lists(st.tuples(st.integers(0, SPAN_MS), st.integers(1, 90_000)), max_size=3)


def traded(script: list[tuple[int, int, int, int]]) -> list[tuple[Trade, int]]:
    """Make trades and when each arrives: in order, and within the grace."""
    out, now, arrives = [], 0, 0
    for n, (wait, price, size, delay) in enumerate(script, 1):
        now = min(now + wait, SPAN_MS - 1)
        arrives = max(arrives, now + delay)
        out.append((trade(n, now, price, size), arrives))
    return out


def truth_of(trades: list[Trade], interval_ms: int) -> dict[int, Candle]:
    truth, price = dict[int, Candle](), 100
    for open_ms in range(BEGIN_MS, BEGIN_MS + SPAN_MS, interval_ms):
        seq = open_ms // interval_ms + 1
        mine = [t for t in trades if open_ms <= t.event_time_ns // NS_PER_MS < open_ms + interval_ms]
        truth[seq] = official(seq, mine, price, interval_ms)
        price = int(truth[seq].close)
    return truth


def delivered(messages: list[Message], cuts: Waits) -> Iterator[Message]:
    """Yield what happens in order; trades, klines and marks that arrive while the connection is away are lost."""
    messages = messages + [Message(begin, Cut(begin + length)) for begin, length in cuts]
    down_until = -1
    for message in sorted(messages, key=lambda m: m.arrives):
        if isinstance(message.what, Cut):
            down_until = max(down_until, message.what.until)
            yield Message(message.arrives, Cut(down_until))
        elif message.arrives >= down_until or isinstance(message.what, Fetch):
            yield message


class Rig:
    """A closer with klines, driven as the pipeline does, whose every candle is held against the truth."""

    def __init__(self, closer: Closer, truth: dict[int, Candle]) -> None:
        self.closer, self.truth = closer, truth
        self.out: dict[int, Candle] = {}
        self._sequence = TradeSequence()
        self._back_ms = 0

    def take(self, what: Trade | Candle | int | Cut | Fetch) -> None:
        if isinstance(what, Cut):
            self._back_ms = what.until
            self.closer.doubt()
        elif isinstance(what, Trade):
            verdict = self._sequence.take(what)
            assert verdict in (Verdict.NEXT, Verdict.GAP)
            if verdict is Verdict.GAP:
                self.closer.lose()
            self._emit(self.closer.trade(what), in_order=True)
        elif isinstance(what, int):
            if what >= self._back_ms:
                self.closer.see(at(what))
            self._emit(self.closer.time(at(what)), in_order=True)
        elif isinstance(what, Candle) and what.seq not in self.out:
            self._emit(self.closer.kline(what), in_order=False)

    def _emit(self, candles: list[Candle], *, in_order: bool) -> None:
        for candle in candles:
            assert candle.seq < self.closer.frontier
            assert candle.seq not in self.out
            assert candle.seq > max(self.out, default=0) or not in_order
            assert candle.same_figures(self.truth[candle.seq]), "a wrong candle"
            self.out[candle.seq] = candle


@settings(max_examples=300)
@given(
    trade_script=trade_scripts,
    kline_delays=st.lists(st.integers(0, 15_000), min_size=MINUTES, max_size=MINUTES),
    marks=mark_scripts,
    cuts=cut_scripts,
    by_exchange=st.booleans(),
)
def test_no_interleaving_and_no_cut_makes_a_wrong_candle(
    trade_script: list[tuple[int, int, int, int]], kline_delays: list[int], marks: Waits, cuts: Waits, by_exchange: bool
) -> None:
    trades = traded(trade_script)
    truth = truth_of([t for t, _ in trades], 60_000)
    messages = [Message(arrives, t) for t, arrives in trades]
    klines = zip(range(60_000, SPAN_MS + 1, 60_000), truth.values(), kline_delays, strict=True)
    messages += [Message(close_ms + delay, candle) for close_ms, candle, delay in klines]
    messages += [Message(event_ms + delay, event_ms) for event_ms, delay in marks]
    rig = Rig(closer(by_exchange=by_exchange), truth)
    for message in delivered(messages, cuts):
        rig.take(message.what)
    assert rig.closer.take_mismatches() == [], "the exchange and we speak of the same trades"
    if not cuts:
        assert set(truth) - set(rig.out) <= {max(truth)}, "where nothing was lost, nothing is left out"
    for candle in truth.values():
        rig.take(candle)
    assert set(rig.out) == set(truth), "what was left out is taken from the exchange"


@settings(max_examples=300)
@given(
    trade_script=trade_scripts,
    fetches=st.lists(st.tuples(st.integers(0, SPAN_MS), st.integers(1, 20)), max_size=25),
    marks=mark_scripts,
    cuts=cut_scripts,
)
def test_a_stitch_lets_no_cut_leave_out_or_falsify_a_candle_of_seconds(
    trade_script: list[tuple[int, int, int, int]], fetches: Waits, marks: Waits, cuts: Waits
) -> None:
    trades = traded(trade_script)
    messages = [Message(arrives, t) for t, arrives in trades]
    messages += [Message(event_ms + delay, event_ms) for event_ms, delay in marks]
    messages += [Message(now_ms, Fetch(limit)) for now_ms, limit in fetches]
    end_ms = 2 * SPAN_MS
    messages += [Message(end_ms, Fetch(100)), Message(end_ms, SPAN_MS + 60_000), Message(end_ms, SPAN_MS + 60_000)]
    c, stitch, back_ms = closer("5s", has_kline=False), Stitch(BEGIN_MS * NS_PER_MS), 0
    out: list[Candle] = []
    for message in delivered(messages, cuts):
        what = message.what
        if isinstance(what, Cut):
            back_ms = what.until
            c.doubt()
            stitch.doubt()
        elif isinstance(what, Fetch):
            if stitch.wants:
                first = stitch.wants.from_id or 1
                known = [t for t, _ in trades if t.id >= first and t.event_time_ns <= at(message.arrives)]
                page = known[: what.limit]
                at_end = message.arrives >= back_ms and len(page) < what.limit
                out += [candle for t in stitch.fill(page, at_end=at_end) for candle in c.trade(t)]
        elif isinstance(what, Trade):
            out += [candle for t in stitch.trade(what) for candle in c.trade(t)]
        elif isinstance(what, int) and stitch.wants is None:
            out += c.time(at(what))
    if not trades:
        assert out == []
        return
    truth = truth_of([t for t, _ in trades], 5_000)
    first = trades[0][0].event_time_ns // (5 * NS_PER_S) + 1
    seqs = [candle.seq for candle in out]
    assert seqs == list(range(first, first + len(out)))
    assert seqs[-1] >= max(truth)
    assert all(candle.same_figures(truth[candle.seq]) for candle in out if candle.seq in truth)
