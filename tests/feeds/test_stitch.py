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


def test_the_first_live_trade_after_an_empty_history_is_looked_up() -> None:
    stitch = Stitch(7)
    stitch.fill([], at_end=True)
    assert stitch.trade(trade(2)) == []
    assert stitch.wants == Wants(None, 7)
    assert ids(stitch.fill([trade(1), trade(2)], at_end=True)) == [1, 2]
    assert ids(stitch.trade(trade(3))) == [3]


def test_the_buffer_is_bounded_and_what_it_lets_go_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stitch_module, "BUFFER_MAX", 3)
    stitch = Stitch(0)
    for n in range(2, 7):
        assert stitch.trade(trade(n)) == []
    assert ids(stitch.fill([trade(1), trade(2)], at_end=False)) == [1, 2]
    assert ids(stitch.fill([trade(3), trade(4)], at_end=False)) == [3, 4, 5, 6]


class Rig:
    """An exchange with a history in pages and a live stream that can be cut, and a stitch that follows it."""

    def __init__(self) -> None:
        self.trades: list[Trade] = []
        self.out: list[Trade] = []
        self.stitch = Stitch(START_MS * NS_PER_MS)
        self._under_way: deque[Trade] = deque()
        self._connected = False

    def _newest_ms(self) -> int:
        return self.trades[-1].event_time_ns // NS_PER_MS if self.trades else START_MS

    def trade(self, wait_ms: int, _size: int) -> None:
        self.trades.append(made(FIRST_ID + len(self.trades), self._newest_ms() + wait_ms))
        if self._connected:
            self._under_way.append(self.trades[-1])

    def deliver(self, _wait_ms: int, size: int) -> None:
        for _ in range(min(size, len(self._under_way))):
            self.out += self.stitch.trade(self._under_way.popleft())

    def deliver_again(self, _wait_ms: int, size: int) -> None:
        if self._connected and self.out:
            self.out += self.stitch.trade(self.out[-min(size, len(self.out))])

    def lose_unnoticed(self, _wait_ms: int, size: int) -> None:
        for _ in range(min(size, len(self._under_way))):
            self._under_way.popleft()

    def cut(self, _wait_ms: int, _size: int) -> None:
        self._connected = False
        self._under_way.clear()
        self.stitch.doubt()

    def connect(self, _wait_ms: int, _size: int) -> None:
        self._connected = True

    def fetch(self, _wait_ms: int, size: int) -> None:
        if wants := self.stitch.wants:
            first = FIRST_ID if wants.from_id is None else wants.from_id
            page = [t for t in self.trades if t.id >= first][:size]
            self.out += self.stitch.fill(page, at_end=self._connected and len(page) < size)

    def bogus_high(self, number: int, _size: int) -> None:
        if self.out:  # a first trade with a wrong id cannot be told from a right one
            self.out += self.stitch.trade(made(BOGUS_HIGH + number, self._newest_ms()))

    def bogus_low(self, number: int, _size: int) -> None:
        if self.out:
            self.out += self.stitch.trade(made(number % FIRST_ID, self._newest_ms()))


OPS = [name for name in vars(Rig) if not name.startswith("_")]
HOLE_OF_SECONDS = [("connect", 0, 1), ("trade", 0, 1), ("deliver", 0, 1), ("fetch", 0, 5), ("trade", 0, 1),
                   ("lose_unnoticed", 0, 1), ("trade", 3_000, 1), ("deliver", 0, 1)]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["trade", *OPS]), st.integers(0, 3_000), st.integers(1, 5)), max_size=80))
@example(HOLE_OF_SECONDS)
@example([("connect", 0, 1), ("fetch", 0, 1), ("trade", 0, 1), ("lose_unnoticed", 0, 1)])
def test_pages_and_live_trades_in_any_order_make_the_exact_sequence(ops: list[tuple[str, int, int]]) -> None:
    rig = Rig()
    for op, wait_ms, size in ops:
        getattr(rig, op)(wait_ms, size)
        assert rig.out == rig.trades[: len(rig.out)]
    rig.connect(0, 0)
    for _ in range(2):  # real trades go on, which is what ends every doubt
        rig.trade(1, 0)
        rig.deliver(0, 1_000)
        for _ in rig.trades:
            rig.fetch(0, 100)
    assert rig.out == rig.trades
    assert rig.stitch.wants is None
