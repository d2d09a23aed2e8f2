"""Who keeps the markets whole, beside an exchange that answers as a script says."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import pytest
import structlog

from daemon import keeper as keepers
from daemon.keeper import Keeper
from daemon.line import Cause, Ordinal
from daemon.metrics import Metrics
from daemon.pipeline import MarketPipeline, Pipeline
from daemon.source import Source
from feeds.events import Kline
from feeds.exchanges.binance import BinanceCodec
from feeds.exchanges.bingx import BingxCodec
from feeds.history import History
from feeds.market import Candle, CandleSpec, Market
from feeds.traits import Traits
from tests.daemon.brokers import until
from tests.daemon.lines import BEGIN, EPOCH, MARKET, MINUTE, MINUTE_NS, MODEL, WARMUP, candle

Rows = Callable[[int, int], Awaitable[list[Candle]]]


class Exchange:
    """Answers questions for candles; its clock is never asked."""

    settle_ns = 0
    budget = None

    def __init__(self, rows: Rows) -> None:
        self.asked: list[tuple[int, int]] = []
        """First and last ordinal of each question."""
        self._rows = rows

    async def candles(self, _market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        first, last = start_ns // spec.interval_ns + 1, end_ns // spec.interval_ns
        self.asked.append((first, last))
        return await self._rows(first, last)


async def whole(first: int, last: int) -> list[Candle]:
    return [candle(seq) for seq in range(first, last + 1)]


async def nothing(_first: int, _last: int) -> list[Candle]:
    return []


async def never(_first: int, _last: int) -> list[Candle]:
    await asyncio.Event().wait()
    return []


def market_at(seq: int, journal: Sequence[Ordinal] = (), traits: Traits = BingxCodec.traits) -> MarketPipeline:
    """Take up a market whose newest closed candle is `seq`."""
    market = Pipeline(MODEL, base_topic="lstmd").add(MARKET, traits)
    line = market.add(MINUTE, MODEL, has_kline=True, by_exchange=False)
    market.clock.set(seq * MINUTE_NS)
    market.settle_funding([], 1 << 62)
    line.begin(newest_seq=seq, stream_seq=None, journal=list(journal))
    return market


def keeper_of(exchange: Exchange) -> Keeper:
    log = structlog.get_logger()
    source = Source(cast("History", exchange), log, hindered=lambda: None)
    keeper = Keeper(source, Metrics(), log, exchange="bingx", unbroken=lambda _: 0, moved=lambda: None)
    keeper._clock_asked_s = 1.0
    return keeper


async def test_it_ends_at_once_though_it_is_stopped_and_cancelled_together_and_an_answer_never_comes() -> None:
    exchange, stop = Exchange(never), asyncio.Event()
    task = asyncio.create_task(keeper_of(exchange).run([market_at(BEGIN)], lambda: True, stop))

    async def cancel_too() -> None:
        await stop.wait()
        task.cancel()

    both = asyncio.create_task(cancel_too())
    await until(lambda: bool(exchange.asked))
    for _ in range(3):
        await asyncio.sleep(0)  # it waits for the next round by now
    stop.set()
    await both
    done, _ = await asyncio.wait([task], timeout=5)
    assert done
    assert task.cancelled()


async def test_a_hole_that_the_exchange_does_not_fill_is_asked_for_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keepers, "REPAIR_POLL_S", 0.001)
    exchange, stop, market = Exchange(nothing), asyncio.Event(), market_at(BEGIN + EPOCH)
    began_s = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        group.create_task(keeper_of(exchange).run([market], lambda: True, stop))
        await until(lambda: len(exchange.asked) >= 3)
        took_s = asyncio.get_running_loop().time() - began_s
        asked = len(exchange.asked)
        exchange._rows = whole
        await until(lambda: market.channels["1m"].line.next_seq > BEGIN + EPOCH)
        stop.set()
    assert took_s >= 3 * keepers.UNFILLED_PAUSE_S
    assert len(exchange.asked) == asked + 1


async def test_candles_of_the_life_before_that_nobody_compared_are_compared() -> None:
    async def official(first: int, last: int) -> list[Candle]:
        return [candle(seq, shift=0.1 if seq == wrong else 0.0) for seq in range(first, last + 1)]

    newest = BEGIN + EPOCH
    journal = [Ordinal(seq, candle(seq)) for seq in range(BEGIN + EPOCH - WARMUP, newest + 1)]
    wrong, exchange, stop, market = newest - 1, Exchange(official), asyncio.Event(), market_at(newest, journal)
    line = market.channels["1m"].line
    async with asyncio.TaskGroup() as group:
        group.create_task(keeper_of(exchange).run([market], lambda: True, stop))
        async with asyncio.timeout(20):
            await until(lambda: market.counts["mismatch"] == 1)
        stop.set()
    (told,) = line.take_work().mismatches
    assert (told.official.seq, told.repaired) == (wrong, True)
    assert exchange.asked == [(journal[0].seq, newest)]


async def test_where_a_stream_confirms_candles_only_those_that_it_left_out_are_compared() -> None:
    newest, exchange, stop = BEGIN + EPOCH, Exchange(whole), asyncio.Event()
    journal = [Ordinal(seq, candle(seq)) for seq in range(BEGIN + EPOCH - WARMUP, newest + 1)]
    market = market_at(newest, journal, BinanceCodec.traits)
    patience = BinanceCodec.traits.kline_patience_ns

    def goes_on(seq: int, *, told: bool) -> None:
        market.channels["1m"].line.offer(candle(seq), Cause(seq * MINUTE_NS, 1))
        market.clock.set(seq * MINUTE_NS)
        if told:
            market.handle(Kline(MARKET, MINUTE, seq * MINUTE_NS, 1, candle(seq)))

    async with asyncio.TaskGroup() as group:
        group.create_task(keeper_of(exchange).run([market], lambda: True, stop))
        market.clock.set(newest * MINUTE_NS + patience)
        await until(lambda: len(exchange.asked) == 1)
        for seq, told in ((newest + 1, True), (newest + 2, False)):
            goes_on(seq, told=told)
        await asyncio.sleep(3 * keepers.REPAIR_POLL_S)
        assert len(exchange.asked) == 1, "the stream may still tell it"
        market.clock.set((newest + 2) * MINUTE_NS + patience)
        await until(lambda: len(exchange.asked) == 2)
        stop.set()
    assert exchange.asked == [(journal[0].seq, newest), (newest + 2, newest + 2)]


async def test_an_answer_that_ends_before_the_newest_candle_is_asked_for_again_until_the_exchange_has_it() -> None:
    newest, stop = BEGIN + EPOCH, asyncio.Event()

    async def late(first: int, last: int) -> list[Candle]:
        return [candle(seq) for seq in range(first, last + (len(exchange.asked) > 1))]

    journal = [Ordinal(seq, candle(seq)) for seq in range(BEGIN + EPOCH - WARMUP, newest + 1)]
    exchange, market = Exchange(late), market_at(newest, journal)
    async with asyncio.TaskGroup() as group:
        group.create_task(keeper_of(exchange).run([market], lambda: True, stop))
        await until(lambda: len(exchange.asked) == 2)
        await asyncio.sleep(3 * keepers.REPAIR_POLL_S)
        stop.set()
    assert exchange.asked == [(journal[0].seq, newest), (newest, newest)]
