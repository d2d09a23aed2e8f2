from collections import deque

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feeds import stitch as stitch_module
from feeds.market import NS_PER_MS, Trade
from feeds.stitch import Stitch, Wants
from tests.feeds.trades import made

FIRST_ID = 1000
START_MS = 1_700_000_000_000
BOGUS_HIGH = 10**12


def ids(trades: list[Trade]) -> list[int]:
    return [trade.id for trade in trades]


def trade(n: int, ms: int | None = None) -> Trade:
    return made(n, START_MS + (n * 100 if ms is None else ms))


def joined(newest: int = 1) -> Stitch:
    stitch = Stitch(0)
    assert ids(stitch.fill([trade(n) for n in range(1, newest + 1)], at_end=True)) == list(range(1, newest + 1))
    assert stitch.wants is None
    return stitch


def test_history_comes_first_and_live_trades_join() -> None:
    stitch = Stitch(START_MS * NS_PER_MS)
    assert stitch.wants == Wants(None, START_MS * NS_PER_MS)
    assert stitch.trade(trade(4)) == stitch.trade(trade(5)) == []
    assert ids(stitch.fill([trade(1), trade(2)], at_end=False)) == [1, 2]
    assert stitch.wants == Wants(3, None)
    assert ids(stitch.fill([trade(3)], at_end=False)) == [3, 4, 5], "4 follows 3, so the two have met"
    assert stitch.wants is None
    assert ids(stitch.trade(trade(6))) == [6]


def test_where_nothing_was_missed_a_lost_connection_costs_one_page() -> None:
    stitch = joined()
    stitch.doubt()
    assert stitch.wants == Wants(2, None)
    assert stitch.fill([], at_end=False) == []
    assert stitch.wants == Wants(2, None), "no live trades are being received yet"
    assert stitch.fill([], at_end=True) == []
    assert ids(stitch.trade(trade(2))) == [2]


def test_a_gap_of_many_seconds_is_filled_whole() -> None:
    stitch = joined()
    assert stitch.trade(trade(100)) == []
    assert stitch.wants == Wants(2, None)
    assert stitch.trade(trade(101)) == []
    assert ids(stitch.fill([trade(n) for n in range(2, 60)], at_end=False)) == list(range(2, 60))
    assert ids(stitch.fill([trade(n) for n in range(60, 102)], at_end=True)) == list(range(60, 102))
    assert stitch.wants is None


@pytest.mark.parametrize("bogus", [trade(BOGUS_HIGH, 150), trade(0, 150)])
def test_a_bogus_id_does_not_wedge_it(bogus: Trade) -> None:
    stitch = joined()
    out = stitch.trade(bogus)
    for n in range(2, 6):
        out += stitch.trade(trade(n))
        if stitch.wants and stitch.wants.from_id is not None:
            out += stitch.fill([trade(k) for k in range(stitch.wants.from_id, n + 1)], at_end=True)
    assert ids(out) == [2, 3, 4, 5]
    assert stitch.wants is None


def test_before_the_first_trade_a_lost_connection_begins_anew() -> None:
    stitch = Stitch(7)
    assert stitch.fill([], at_end=True) == []
    assert stitch.wants is None
    stitch.doubt()
    assert stitch.wants == Wants(None, 7), "trades may have come meanwhile"


def test_the_buffer_is_bounded_and_what_it_lets_go_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stitch_module, "BUFFER_MAX", 3)
    stitch = Stitch(0)
    for n in range(2, 7):
        assert stitch.trade(trade(n)) == []
    assert ids(stitch.fill([trade(1), trade(2)], at_end=False)) == [1, 2]
    assert ids(stitch.fill([trade(3), trade(4)], at_end=False)) == [3, 4, 5, 6]


OPS = (
    "trade",
    "trade",
    "trade",
    "deliver",
    "deliver",
    "again",
    "cut",
    "connect",
    "fetch",
    "bogus_high",
    "bogus_low",
    "silent_loss",
)


class Exchange:
    """An exchange with a live stream that can be cut, and a history in pages."""

    def __init__(self) -> None:
        self.trades: list[Trade] = []
        self.under_way: deque[Trade] = deque()
        self.connected = False

    def happen(self, wait_ms: int) -> None:
        newest_ms = self.trades[-1].event_time_ns // NS_PER_MS if self.trades else START_MS
        self.trades.append(made(FIRST_ID + len(self.trades), newest_ms + wait_ms))
        if self.connected:
            self.under_way.append(self.trades[-1])

    def page(self, wants: Wants, limit: int) -> list[Trade]:
        first = FIRST_ID if wants.from_id is None else wants.from_id
        return [t for t in self.trades if t.id >= first][:limit]


@given(st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 3_000), st.integers(1, 5)), max_size=80))
@example([("connect", 0, 1), ("trade", 0, 1), ("deliver", 0, 1), ("fetch", 0, 5), ("trade", 0, 1), ("silent_loss", 0, 1),
          ("trade", 3_000, 1), ("deliver", 0, 1)])  # fmt: skip
def test_pages_and_live_trades_in_any_order_make_the_exact_sequence(ops: list[tuple[str, int, int]]) -> None:
    exchange, stitch = Exchange(), Stitch(START_MS * NS_PER_MS)
    out: list[Trade] = []

    def do(op: str, wait_ms: int, size: int) -> None:
        nonlocal out
        newest_ms = exchange.trades[-1].event_time_ns // NS_PER_MS if exchange.trades else START_MS
        if op == "trade":
            exchange.happen(wait_ms)
        elif op == "deliver" and exchange.under_way:
            out += stitch.trade(exchange.under_way.popleft())
        elif op == "again" and exchange.connected and out:
            out += stitch.trade(out[-min(size, len(out))])
        elif op == "silent_loss" and exchange.under_way:
            exchange.under_way.popleft()
        elif op == "cut":
            exchange.connected = False
            exchange.under_way.clear()
            stitch.doubt()
        elif op == "connect":
            exchange.connected = True
        elif op == "fetch" and stitch.wants is not None:
            page = exchange.page(stitch.wants, size)
            out += stitch.fill(page, at_end=exchange.connected and len(page) < size)
        elif op == "bogus_high" and out:
            out += stitch.trade(made(BOGUS_HIGH + wait_ms, newest_ms))
        elif op == "bogus_low" and out:
            out += stitch.trade(made(wait_ms % FIRST_ID, newest_ms))

    for op, wait_ms, size in ops:
        do(op, wait_ms, size)
        assert ids(out) == [FIRST_ID + n for n in range(len(out))]
    do("connect", 0, 0)
    for _ in range(2):  # real trades go on, which is what ends every doubt
        do("trade", 1, 0)
        while exchange.under_way:
            do("deliver", 0, 0)
        for _ in exchange.trades:
            do("fetch", 0, 100)
    assert out == exchange.trades
    assert stitch.wants is None
