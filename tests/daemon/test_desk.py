"""A feed at work against the emulated exchange: taking up, saying what is wrong, filling what is missing."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from config.load import ConfigError
from config.schema import Feed
from daemon import desk as desks
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.store import Store
from feeds.emulator.server import Emulator
from feeds.emulator.synthetic import synthetic_tape
from feeds.emulator.tape import T, Tape
from feeds.events import FundingSettlement
from feeds.market import Market
from inference.engine import Model
from inference.signals import Rules
from tests.daemon.brokers import until
from tests.daemon.lines import small_artifact

BEGIN_MS = 1_736_121_600_000  # 2025-01-06
HOUR_MS = 3_600_000
WAIT_S = 90
MODEL = Model(small_artifact("1m", "5s"), Rules())


def markets(*natives: str) -> dict[str, Tape]:
    return {native: synthetic_tape(native, seed=1, begin_ms=BEGIN_MS) for native in natives}


@contextlib.asynccontextmanager
async def emulated(
    tapes: dict[str, Tape], *, speed: float = 120, after_ms: int = HOUR_MS
) -> AsyncIterator[tuple[Emulator, int]]:
    emulator = Emulator(tapes, start_ns=(BEGIN_MS + after_ms) * 1_000_000, speed=speed)
    port = await emulator.start()
    try:
        yield emulator, port
    finally:
        await emulator.stop()


def feed(port: int, *symbols: str, candles: tuple[str, ...] = ("1m",)) -> Feed:
    url = f"127.0.0.1:{port}"
    return Feed(exchange="binance", symbols=symbols, candles=candles, ws_url=f"ws://{url}", rest_url=f"http://{url}")


@contextlib.asynccontextmanager
async def at_work(desk: Desk) -> AsyncIterator[None]:
    """Run a desk until the end of the block; its failure ends the block."""
    stop = asyncio.Event()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        task = group.create_task(desk.run(stop))
        try:
            yield
        finally:
            stop.set()
            task.cancel()


@pytest.fixture
def told() -> dict[str, list[int]]:
    return {}


@pytest.fixture
def make(tmp_path: Path, told: dict[str, list[int]]) -> Iterator[Callable[..., Desk]]:
    store = Store(tmp_path / "lstmd.sqlite")
    pipeline = Pipeline(MODEL, base_topic="lstmd")

    def moved() -> None:
        for line, work in pipeline.take_work():
            told.setdefault(line.name, []).extend(json.loads(draft.identity)["seq"] for draft in work.drafts)

    yield lambda wanted, number=0: Desk(number, wanted, pipeline, store, Metrics(), moved)
    store.close()


async def test_a_feed_is_taken_up_warmed_and_goes_online(make: Callable[..., Desk], told: dict[str, list[int]]) -> None:
    async with emulated(markets("BTCUSDT", "ETHUSDT")) as (_, port):
        desk = make(feed(port, "all"))
        assert desk.reason == "starting"
        assert not desk.live
        async with at_work(desk):
            await until(lambda: all(len(seqs) >= 5 for seqs in told.values()) and len(told) == 2)
            assert desk.settled.is_set()
            await until(lambda: {desk.availability(m) for m in desk.markets} == {("online", "")})
            assert desk.reason == ""
        for seqs in told.values():
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


async def test_markets_that_are_being_taken_up_are_not_available_yet(
    make: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with emulated(markets("BTCUSDT")) as (_, port):
        desk = make(feed(port, "BTC/USDT:USDT"))
        async with at_work(desk):
            asked, answer = asyncio.Event(), asyncio.Event()

            async def funding(_market: Market, *, start_ns: int) -> list[FundingSettlement]:
                asked.set()
                await answer.wait()
                return await type(desk._history).funding(desk._history, _market, start_ns=start_ns)

            monkeypatch.setattr(desk._history, "funding", funding)
            await asked.wait()
            await until(lambda: desk.live)
            assert not desk.settled.is_set()
            assert desk.markets == []
            assert desk.waiting == 1
            ((market, *said),) = desk.standings()
            assert (market.symbol, *said) == ("BTC/USDT:USDT", "warming", "waits for its turn")
            answer.set()
            await until(lambda: [state for _, state, _ in desk.standings()] == ["online"])
            assert desk.settled.is_set()
            assert desk.waiting == 0


async def test_an_exchange_that_cannot_be_reached_is_said_and_waited_for(make: Callable[..., Desk]) -> None:
    async with emulated(markets("BTCUSDT")) as (emulator, port):
        emulator.refuse = True
        desk = make(feed(port, "BTC/USDT:USDT"))
        async with at_work(desk):
            await desk.settled.wait()
            assert desk.reason.startswith("history unreachable: ")
            assert desk.markets == []
            emulator.refuse = False
            await until(lambda: desk.live)
            emulator.refuse = True
            await emulator.cut()
            await until(lambda: not desk.live)
            assert desk.availability(desk.markets[0])[0] == "stale"
            assert desk.availability(desk.markets[0])[1]
            assert desk.reconnects == 1
            emulator.refuse = False
            await until(lambda: desk.live and desk.availability(desk.markets[0]) == ("online", ""))


@pytest.mark.parametrize("symbols", [("BTC/USDT:USDT",), ("BTC/*",), ("all",)])
async def test_a_market_is_in_one_feed_only(make: Callable[..., Desk], symbols: tuple[str, ...]) -> None:
    async with emulated(markets("BTCUSDT")) as (_, port):
        first = make(feed(port, "BTC/USDT:USDT"))
        async with at_work(first):
            await first.settled.wait()
            with pytest.raises(ConfigError, match=r"^feeds\[1\].symbols: BTC/USDT:USDT is in another feed of binance"):
                await make(feed(port, *symbols), 1).run(asyncio.Event())


async def test_a_symbol_nobody_trades_is_named_with_its_nearest(make: Callable[..., Desk]) -> None:
    async with emulated(markets("BTCUSDT")) as (_, port):
        with pytest.raises(ConfigError, match=r"feeds\[0\].symbols\[1\]: .* BTK/USDT:USDT; did you mean BTC/USDT:USDT"):
            await make(feed(port, "BTC*", "BTK/USDT:USDT")).run(asyncio.Event())


async def test_silence_is_stale_whatever_the_connection_says(
    make: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with emulated(markets("BTCUSDT")) as (emulator, port):
        desk = make(feed(port, "BTC/USDT:USDT"))
        async with at_work(desk):
            await until(lambda: desk.live and desk.availability(desk.markets[0])[0] == "online")
            monkeypatch.setattr(desks, "SILENT_S", 0.5)
            emulator.mute = True
            await until(lambda: desk.availability(desk.markets[0])[0] == "stale")
            emulator.mute = False
            await until(lambda: desk.availability(desk.markets[0])[0] == "online")


def quiet_tape() -> Tape:
    """Trade once in 47 s: most intervals of 5 s are empty, at the beginning of a fold too."""
    rows = np.zeros((400, len(T)), np.int64)
    rows[:, T.ID] = rows[:, T.FIRST] = rows[:, T.LAST] = np.arange(1, 401)
    rows[:, T.TIME] = BEGIN_MS + 1 + 47_000 * np.arange(400)
    rows[:, T.PRICE], rows[:, T.SIZE] = 1000 + np.arange(400) % 7, 5
    return Tape("BTCUSDT", rows, price_decimals=2, size_decimals=1)


async def test_a_quiet_market_has_small_candles_from_its_last_price(
    make: Callable[..., Desk], told: dict[str, list[int]]
) -> None:
    async with emulated({"BTCUSDT": quiet_tape()}, speed=30) as (_, port):
        desk = make(feed(port, "BTC/USDT:USDT", candles=("5s",)))
        async with at_work(desk):
            await until(lambda: sum(map(len, told.values())) >= 30)
        (seqs,) = told.values()
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
