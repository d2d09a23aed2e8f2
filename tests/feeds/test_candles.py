from collections.abc import Iterable
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feeds.candles import EventCandles, TimeCandles, candle_builder
from feeds.capture import AggTrade
from feeds.market import NS_PER_DAY, NS_PER_MS, SEQ_PER_DAY, Candle, CandleSpec, Market, Origin, Trade
from tests.feeds.trades import APE, ETH, as_trades, figures, folded, folded_by_time, made, recorded

DAY_MS = NS_PER_DAY // NS_PER_MS
SECOND = CandleSpec.parse("1s")


def time_builder(spec: CandleSpec = SECOND, market: Market = ETH) -> TimeCandles:
    return TimeCandles(spec, price_decimals=market.price_decimals, size_decimals=market.size_decimals)


def fed(builder: TimeCandles | EventCandles, trades: Iterable[Trade]) -> list[Candle]:
    return [candle for trade in trades for candle in builder.add(trade)]


@pytest.mark.parametrize(
    ("market", "text"), [*((APE, text) for text in ("1s", "5s", "1m", "5m", "1h", "1d")), (ETH, "5s")]
)
def test_recorded_trades_make_the_candles_that_decimal_arithmetic_makes(market: Market, text: str) -> None:
    rows, spec = recorded(market), CandleSpec.parse(text)
    builder = time_builder(spec, market)
    builder.see(spec.open_of(rows[0].time_ms * NS_PER_MS))
    end_ns = spec.open_of(rows[-1].time_ms * NS_PER_MS) + spec.interval_ns
    candles = fed(builder, as_trades(rows, market)) + builder.close_until(end_ns)
    expected = folded_by_time(rows, spec.interval_ns // NS_PER_MS)
    assert [candle.seq for candle in candles] == list(expected)
    assert {candle.seq: figures(candle) for candle in candles} == expected
    assert any(candle.trades == 0 for candle in candles) == (market is APE and text in ("1s", "5s"))
    for candle in candles:
        assert candle.close_time_ns - candle.open_time_ns == spec.interval_ns
        assert candle.close_time_ns == candle.seq * spec.interval_ns
        assert (candle.closed, candle.origin) == (True, Origin.TRADES)
    assert (builder.late, builder.frontier) == (0, candles[-1].seq + 1)


def test_the_forming_candle_is_read_as_it_stands() -> None:
    builder = time_builder()
    assert builder.forming() is None
    fed(builder, [made(1, 5_000, 110, 3), made(2, 5_100, 90), made(3, 5_200, 100)])
    forming = builder.forming()
    assert forming is not None
    assert (forming.seq, forming.closed) == (6, False)
    assert figures(forming) == (1.1, 1.1, 0.9, 1.0, 0.005, 3)


def test_the_first_interval_closes_only_if_it_was_seen_from_its_start() -> None:
    seen, unseen, edge = time_builder(), time_builder(), time_builder()
    seen.see(5_000 * NS_PER_MS)
    trades = [made(1, 5_000), made(2, 6_500), made(3, 7_500)]
    assert [candle.seq for candle in fed(seen, trades)] == [6, 7]
    assert [candle.seq for candle in fed(unseen, trades)] == [7], "another trade of 5.000 s may have come before"
    edge.see(5_001 * NS_PER_MS)
    assert [candle.seq for candle in fed(edge, trades)] == [7]
    assert unseen.frontier == 8


def test_nothing_is_told_of_empty_intervals_while_no_price_is_known() -> None:
    builder = time_builder()
    builder.see(0)
    assert builder.close_until(9_000 * NS_PER_MS) == []
    assert builder.forming() is None
    builder.carry(1.25)
    assert [figures(candle) for candle in builder.close_until(11_000 * NS_PER_MS)] == [
        (1.25, 1.25, 1.25, 1.25, 0.0, 0)
    ] * 2
    builder.lose()
    assert builder.close_until(12_000 * NS_PER_MS) == []
    assert builder.frontier == 13


def test_a_late_trade_is_counted_and_changes_nothing() -> None:
    with_late, without = time_builder(), time_builder()
    trades = [made(1, 5_000), made(2, 6_100), made(4, 6_200), made(5, 7_000)]
    candles = fed(without, trades)
    assert fed(with_late, [*trades[:2], made(3, 5_999, 10**6), *trades[2:]]) == candles
    assert (with_late.late, without.late) == (1, 0)


steps = st.lists(st.tuples(st.integers(0, 1_700), st.integers(1, 300), st.integers(1, 50)), max_size=40)


def trades_of(moves: list[tuple[int, int, int]]) -> list[Trade]:
    trades, time_ms = [], 10_000
    for n, (wait_ms, price, size) in enumerate(moves, 1):
        time_ms += wait_ms
        trades.append(made(n, time_ms, price, size))
    return trades


def rows_of(trades: list[Trade]) -> list[AggTrade]:
    """Write trades down as the exchange would, in ETH's decimals."""
    return [
        AggTrade(
            t.id, str(Decimal(t.price) / 100), str(Decimal(t.size) / 1000), 0, 0, t.event_time_ns // NS_PER_MS, True
        )
        for t in trades
    ]


@given(moves=steps, early=st.data())
def test_when_evidence_comes_between_the_trades_does_not_show(
    moves: list[tuple[int, int, int]], early: st.DataObject
) -> None:
    trades, last_ns = trades_of(moves), 0
    plain, prompted = time_builder(), time_builder()
    candles: list[Candle] = []
    for trade in trades:
        for at_ns in sorted(early.draw(st.lists(st.integers(last_ns, trade.event_time_ns), max_size=2))):
            candles += prompted.close_until(at_ns)
        candles += prompted.add(trade)
        last_ns = trade.event_time_ns
    assert candles == fed(plain, trades)
    assert prompted.forming() == plain.forming()


@given(moves=steps, lost=st.sets(st.integers(1, 40)))
@example(moves=[(0, 1, 1), (0, 2, 1), (1_000, 3, 1)], lost={1})  # the first one seen shares its ms with one missed
def test_a_candle_with_missing_trades_never_comes_out_closed(moves: list[tuple[int, int, int]], lost: set[int]) -> None:
    trades = trades_of(moves)
    truth = folded_by_time(rows_of(trades), 1_000) if trades else {}
    builder, candles, last_id = time_builder(), [], 0
    for trade in trades:
        if trade.id in lost:
            continue
        if trade.id != last_id + 1:
            builder.lose()
        candles += builder.add(trade)
        last_id = trade.id
    for candle in candles:
        assert figures(candle) == truth[candle.seq]
    seqs = [candle.seq for candle in candles]
    assert all(a < b for a, b in pairwise(seqs))
    if trades and not lost:
        assert seqs == [seq for seq in truth if min(truth) < seq < max(truth)], (
            "where nothing is lost, nothing is left out"
        )


def shifted(rows: Iterable[AggTrade], by_ms: int) -> list[AggTrade]:
    return [row._replace(time_ms=row.time_ms + by_ms) for row in rows]


def folded_by_events(rows: list[AggTrade], text: str) -> list[tuple[int, list[AggTrade]]]:
    """Cut texts into candles: each one's ordinal and trades; the last may be unfinished."""
    amount, kind = Decimal(text[:-1]), text[-1]
    candles: list[tuple[int, list[AggTrade]]] = []
    reached, day = Decimal(0), -1
    for row in rows:
        if row.time_ms // DAY_MS != day:
            day, reached = row.time_ms // DAY_MS, Decimal(0)
            candles.append((day * SEQ_PER_DAY + 1, []))
        elif reached >= amount:
            reached = Decimal(0)
            candles.append((candles[-1][0] + 1, []))
        candles[-1][1].append(row)
        value = Decimal(row.size) * Decimal(row.price)
        reached += {"t": Decimal(row.last - row.first + 1), "v": Decimal(row.size), "$": value}[kind]
    return candles


@pytest.mark.parametrize("text", ["100t", "50v", "1000000$"])
@pytest.mark.parametrize(("market", "shift_ms"), [(ETH, 0), (APE, 0), (APE, 12 * 3_600_000)])
def test_event_candles_hold_the_trades_that_decimal_arithmetic_puts_there(
    market: Market, shift_ms: int, text: str
) -> None:
    rows = shifted(recorded(market), shift_ms)
    builder = candle_builder(
        CandleSpec.parse(text), price_decimals=market.price_decimals, size_decimals=market.size_decimals
    )
    candles = fed(builder, as_trades(rows, market))
    expected = folded_by_events(rows, text)
    assert len(expected) - len(candles) in (0, 1)
    for candle, (seq, mine) in zip(candles, expected, strict=False):
        assert (candle.seq, figures(candle), candle.closed) == (seq, folded(mine), True)
        assert candle.close_time_ns == max(candle.open_time_ns, (mine[-1].time_ms + 1) * NS_PER_MS)
    for before, after in pairwise(candles):
        assert before.close_time_ns <= after.open_time_ns
    days = {row.time_ms // DAY_MS for row in rows}
    assert {candle.seq // SEQ_PER_DAY for candle in candles} <= days
    assert len(days) == 1 + (market is ETH or shift_ms > 0), "ETH's tape and the shifted one cross midnight"
    end_ns = (max(days) + 1) * NS_PER_DAY
    candles += builder.close_until(end_ns)
    assert [candle.seq for candle in candles] == [seq for seq, _ in expected]
    assert builder.close_until(end_ns + 1) == []
    assert builder.forming() is None


def events(text: str) -> EventCandles:
    return EventCandles(CandleSpec.parse(text), price_decimals=2, size_decimals=3)


def test_many_candles_in_the_last_millisecond_of_a_day_keep_their_day() -> None:
    last_ms = 3 * DAY_MS - 1
    candles = fed(events("1t"), [made(n, last_ms) for n in (1, 2, 3)] + [made(4, last_ms + 1)])
    assert [candle.seq for candle in candles] == [2 * SEQ_PER_DAY + n for n in (1, 2, 3)] + [3 * SEQ_PER_DAY + 1]
    assert all(candle.open_time_ns <= candle.close_time_ns <= 3 * NS_PER_DAY for candle in candles[:3])


@pytest.mark.parametrize("by_trade", [True, False])
def test_a_trade_that_comes_after_midnight_belongs_to_the_new_day(by_trade: bool) -> None:
    builder = events("2t")
    fed(builder, [made(1, 3 * DAY_MS - 5)])
    closed = builder.add(made(2, 3 * DAY_MS)) if by_trade else builder.close_until(3 * NS_PER_DAY + 7)
    assert [(candle.seq, candle.trades) for candle in closed] == [(2 * SEQ_PER_DAY + 1, 1)]
    late = fed(builder, [made(3, 3 * DAY_MS - 1), made(4, 3 * DAY_MS + 9), made(5, 3 * DAY_MS + 9)])
    assert late[0].seq == 3 * SEQ_PER_DAY + 1
    assert late[0].open_time_ns >= 3 * NS_PER_DAY


def test_another_streams_time_leaves_no_trace_in_an_event_candle() -> None:
    plain, prompted = events("2t"), events("2t")
    prompted.close_until(2 * NS_PER_DAY + 10**12)
    trades = [made(1, 2 * DAY_MS + 5), made(2, 2 * DAY_MS + 6)]
    assert fed(prompted, trades) == fed(plain, trades)


@given(
    st.lists(st.tuples(st.integers(0, DAY_MS // 4), st.integers(1, 5)), max_size=60),
    st.sampled_from(["1t", "3t", "0.004v"]),
)
def test_every_trade_is_in_exactly_one_event_candle(moves: list[tuple[int, int]], text: str) -> None:
    time_ms, trades = 10**12, []
    for n, (wait_ms, size) in enumerate(moves):
        time_ms += wait_ms
        trades.append(made(n, time_ms, size=size))
    builder = events(text)
    candles = fed(builder, trades)
    candles += builder.close_until((time_ms // DAY_MS + 1) * NS_PER_DAY)
    assert sum(candle.trades for candle in candles) == len(trades)
    assert round(sum(candle.volume for candle in candles) * 1000) == sum(trade.size for trade in trades)
    for before, after in pairwise(candles):
        assert before.seq < after.seq
        assert before.close_time_ns <= after.open_time_ns
