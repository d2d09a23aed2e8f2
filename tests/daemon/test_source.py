"""An exchange's limits: kept over a restart, shared by all feeds of it, the urgent first; and one that refuses us."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from ccxt.async_support.binanceusdm import binanceusdm

from daemon import clock, source
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.source import Budgets, Source
from daemon.store import Store
from daemon.topics import rfc3339
from feeds import budget as budgeting
from feeds import runner
from feeds.budget import Priority
from feeds.emulator import Emulator
from feeds.history import open_history
from feeds.market import NS_PER_S
from tests.daemon.brokers import until
from tests.daemon.test_desk import MODEL, at_work, emulated, feed, make, markets, told

__all__ = ["make", "told"]  # fixtures
BTC, ETH = "BTC/USDT:USDT", "ETH/USDT:USDT"


@pytest.fixture(autouse=True)
def prompt_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binanceusdm, "timeout_on_exit", 0)


class Wall:
    """The wall clock, which only a test moves."""

    def __init__(self) -> None:
        self.now_ns = clock.now_ns()

    def __call__(self) -> int:
        return self.now_ns


@contextlib.asynccontextmanager
async def a_life(path: Path, port: int, *symbols: str) -> AsyncIterator[tuple[Desk, Budgets]]:
    """Run a daemon's worth of one feed on the store at `path`."""
    store = Store(path)
    try:
        budgets, pipeline = Budgets(store), Pipeline(MODEL, base_topic="lstmd")

        def moved() -> None:
            pipeline.take_work()

        desk = Desk(0, feed(port, *symbols), pipeline, store, Metrics(), moved, budgets)
        async with at_work(desk):
            yield desk, budgets
    finally:
        store.close()


@pytest.mark.parametrize("banned", [False, True])
async def test_no_request_before_the_time_the_exchange_named_in_this_life_or_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, banned: bool
) -> None:
    wall, path = Wall(), tmp_path / "lstmd.sqlite"
    monkeypatch.setattr(clock, "now_ns", wall)
    said = "history unreachable: no request is wanted before " + rfc3339(wall.now_ns + 600 * NS_PER_S)
    async with emulated(markets("BTCUSDT")) as (emulator, port):
        emulator.faults.limit(1, retry_after_s=600, banned=banned)
        asked = emulator.venue.requests
        async with a_life(path, port, BTC) as (desk, budgets):
            await desk.settled.wait()
            assert desk.reason.startswith("history unreachable: ")
            assert ("banned" in desk.reason) is banned
            other = Desk(1, feed(port, ETH), desk._pipeline, desk._store, Metrics(), lambda: None, budgets)
            async with at_work(other):
                await other.settled.wait()
                assert other.reason == said, "a second feed of the exchange knows of it too"
        wall.now_ns += 400 * NS_PER_S
        async with a_life(path, port, BTC) as (desk, _):
            await desk.settled.wait()
            assert desk.reason == said
            await asyncio.sleep(0.2)
            assert asked.total() == 1
        wall.now_ns += 200 * NS_PER_S
        async with a_life(path, port, BTC) as (desk, _):
            await until(lambda: desk.live and bool(desk.markets))
            assert desk._source.obstacle == ""


async def test_a_wait_of_hours_is_remembered_by_address_and_no_longer_than_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, store = Wall(), Store(tmp_path / "lstmd.sqlite")
    monkeypatch.setattr(clock, "now_ns", wall)
    Budgets(store).of("binance", None).block(7200.0)
    for since_s, left_s in ((3600, 3600), (-365 * 86_400, 3600), (3600, 0)):
        wall.now_ns += since_s * NS_PER_S
        assert Budgets(store).of("binance", None).blocked_for_s == pytest.approx(left_s, abs=5)
        assert Budgets(store).of("binance", "http://127.0.0.1:9").blocked_for_s == 0
    store.close()


async def test_repairs_go_before_audits_and_audits_before_warm_ups_whoever_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgeting, "_ROOM", dict.fromkeys(Priority, 1))
    store, order = Store(tmp_path / "lstmd.sqlite"), list[str]()
    async with emulated(markets("BTCUSDT", "ETHUSDT")) as (emulator, port):
        spy(monkeypatch, emulator, order)
        budgets, url = Budgets(store), f"http://127.0.0.1:{port}"
        budget = budgets.of("binance", url)
        histories = [open_history("binance", url, budgets.of("binance", url)) for _ in range(2)]
        first, second = (Source(each, structlog.get_logger(), hindered=lambda: None) for each in histories)
        listed = await first.insist(histories[0].markets)
        budget.block(0.3)

        def ask(source: Source, symbol: str, number: int, priority: Priority) -> asyncio.Task[Any]:
            fetch = source.history.trades
            return asyncio.create_task(
                source.insist(lambda: fetch(listed[symbol], from_id=1, limit=number), priority), name=str(number)
            )

        waiting = [
            ask(first, BTC, 100, Priority.WARM_UP), ask(second, ETH, 200, Priority.AUDIT),
            ask(second, ETH, 101, Priority.WARM_UP), ask(first, BTC, 300, Priority.REPAIR),
            ask(second, ETH, 301, Priority.REPAIR), ask(first, BTC, 201, Priority.AUDIT),
        ]  # fmt: skip
        order.clear()
        async with asyncio.timeout(60):
            await asyncio.gather(*waiting)
        assert order == ["300", "301", "200", "201", "100", "101"]
        for history in histories:
            await history.aclose()
    store.close()


def spy(monkeypatch: pytest.MonkeyPatch, emulator: Emulator, order: list[str]) -> None:
    """Note the limit of each request in the order in which the exchange sees them."""
    plain = emulator._dialect.rest

    def rest(path: str, query: Mapping[str, str]) -> Any:
        order.append(query.get("limit", ""))
        return plain(path, query)

    monkeypatch.setattr(emulator._dialect, "rest", rest)


async def test_two_feeds_of_an_exchange_keep_one_pace(tmp_path: Path) -> None:
    store, pipeline = Store(tmp_path / "lstmd.sqlite"), Pipeline(MODEL, base_topic="lstmd")
    budgets = Budgets(store)
    one, two = (
        Desk(n, feed(9, symbol), pipeline, store, Metrics(), lambda: None, budgets)
        for n, symbol in enumerate((BTC, ETH))
    )
    other = Desk(2, feed(8, BTC), pipeline, store, Metrics(), lambda: None, budgets)
    assert one._history.budget is two._history.budget is not None
    limiters = [desk._history._rest.throttler for desk in (one, two, other)]  # type: ignore[attr-defined]
    assert limiters[0] is limiters[1]
    assert limiters[2] is not limiters[0], "another address is another exchange"
    for desk in (one, two, other):
        await desk._history.aclose()
    store.close()


async def test_a_refusal_costs_the_markets_nothing_but_time(
    make: Callable[..., Desk], told: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (runner, source):
        monkeypatch.setattr(module, "FORBIDDEN_S", 0.7)
    async with emulated(markets("BTCUSDT", "ETHUSDT"), speed=600) as (emulator, port):
        desk = make(feed(port, "all"))
        async with at_work(desk):
            await until(lambda: len(told) == 2 and all(len(seqs) >= 3 for seqs in told.values()))
            taken = list(desk.markets)
            emulator.refuse = 451
            await emulator.cut()
            await until(lambda: {state for _, state, _ in desk.standings()} == {"refused"})
            asked = emulator.venue.requests.total()
            await asyncio.sleep(0.6)
            assert emulator.venue.requests.total() <= asked + 4, "now and then each of websocket and history"
            before = {name: len(seqs) for name, seqs in told.items()}
            emulator.refuse = False
            await until(lambda: {state for _, state, _ in desk.standings()} == {"online"})
            await until(lambda: all(len(seqs) >= before[name] + 3 for name, seqs in told.items()))
            assert desk.markets == taken
        for seqs in told.values():
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
