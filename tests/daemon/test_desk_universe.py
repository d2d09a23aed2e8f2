"""Contracts that come, go, stop and change under a desk at work; their neighbours on the connection notice nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from config.schema import Feed
from daemon import desk as desks
from daemon.desk import Desk
from daemon.line import Line
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.store import LineCommit, Message, Store
from feeds import runner
from feeds.emulator import Emulator
from feeds.emulator.synthetic import synthetic_tape
from feeds.emulator.tape import MINUTE_MS, K, Tape, decimal_text
from feeds.exchanges import CODECS
from feeds.market import Candle, Market
from tests.daemon.brokers import until
from tests.daemon.test_desk import BEGIN_MS, HOUR_MS, MODEL, WAIT_S

NATIVES = {
    "binance": ("BTCUSDT", "ETHUSDT", "SOLUSDT"), "bybit": ("BTCUSDT", "ETHUSDT", "SOLUSDT"),
    "bingx": ("BTC-USDT", "ETH-USDT", "SOL-USDT"), "bitget": ("BTCUSDT", "ETHUSDT", "SOLUSDT"),
    "bitmex": ("XBTUSDT", "ETHUSDT", "SOLUSDT"),
}  # fmt: skip
BTC, ETH, SOL = "BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT"
SPEED = 120.0


class Parts:
    """A desk at an emulated exchange that begins with BTC and ETH, and what it has committed."""

    def __init__(self, exchange: str, folder: Path, *symbols: str) -> None:
        self.exchange, (self.btc, self.eth, self.sol) = exchange, NATIVES[exchange]
        start_ns = (BEGIN_MS + HOUR_MS) * 1_000_000
        tapes = {native: tape(native) for native in (self.btc, self.eth)}
        self.emulator = Emulator(tapes, exchange=exchange, start_ns=start_ns, speed=SPEED)
        self.symbols = symbols or ("*/USDT:USDT",)
        self.store, self.metrics = Store(folder / "lstmd.sqlite"), Metrics()
        self.pipeline = Pipeline(MODEL, base_topic="lstmd")
        self.told: dict[str, list[int]] = {}
        """Ordinals of the durable messages by line."""
        self.desk: Desk

    def commit(self) -> None:
        for line, work in self.pipeline.take_work():
            drafts = work.drafts
            self.told.setdefault(line.market.symbol, []).extend(draft.seq for draft in drafts)
            messages = [Message(d.seq, d.topic, d.time_ns, d.identity, b"{}") for d in drafts]
            self.store.commit([LineCommit(line.name, work.rows, None, line.model_key, messages)])

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[Desk]:
        url = f"127.0.0.1:{await self.emulator.start()}"
        feed = Feed(exchange=self.exchange, symbols=self.symbols, ws_url=f"ws://{url}", rest_url=f"http://{url}")
        self.desk = Desk(0, feed, self.pipeline, self.store, self.metrics, self.commit)
        stop = asyncio.Event()
        try:
            async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
                task = group.create_task(self.desk.run(stop))
                await until(lambda: self.said == dict.fromkeys((BTC, ETH), "online"))
                yield self.desk
                stop.set()
                task.cancel()
        finally:
            await self.emulator.stop()
            self.store.close()

    @property
    def said(self) -> dict[str, str]:
        return {market.symbol: state for market, state, _ in self.desk.standings()}

    def reason(self, symbol: str) -> str:
        return next(reason for market, _, reason in self.desk.standings() if market.symbol == symbol)

    def line(self, symbol: str) -> Line:
        market = next(m for m in self.desk.markets if m.market.symbol == symbol)
        return market.channels["1m"].line

    async def more(self, symbol: str, messages: int = 3) -> None:
        """Wait for messages of a market."""
        wanted = len(self.told.get(symbol, ())) + messages
        await until(lambda: len(self.told.get(symbol, ())) >= wanted)

    def assert_whole(self, symbol: str, native: str) -> None:
        """Hold the messages' ordinals to be gapless, and the candles in the journal to be the tape's."""
        seqs = self.told[symbol]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        rows = {row.seq: row.candle for row in self.store.journal(f"{self.exchange}|{symbol}|1m", seqs[0])}
        assert set(seqs) <= set(rows)
        expected = figures(self.emulator.venue.tapes[native], seqs, self.exchange)
        assert {seq: of(rows[seq]) for seq in seqs} == expected


def tape(native: str, begin_ms: int = BEGIN_MS) -> Tape:
    return synthetic_tape(native, seed=1, begin_ms=begin_ms)


def of(candle: Candle | None) -> tuple[float, ...]:
    assert candle is not None
    return candle.open, candle.high, candle.low, candle.close, candle.volume


def figures(tape: Tape, seqs: list[int], exchange: str) -> dict[int, tuple[float, ...]]:
    """Read the candles of the tape as an exchange writes them."""
    traits, lots = CODECS[exchange].traits, 0 if exchange == "bitmex" else tape.size_decimals
    start_ms, end_ms = (seqs[0] - 2) * MINUTE_MS, seqs[-1] * MINUTE_MS
    bars = tape.candles(MINUTE_MS, start_ms=start_ms, end_ms=end_ms, now_ms=end_ms + MINUTE_MS)
    found = {}
    for before, bar in pairwise(bars):
        o, h, l, c = bar[K.OPEN : K.CLOSE + 1]
        o = before[K.CLOSE] if traits.opens_at_previous_close else o
        if traits.open_in_range:
            h, l = max(o, h), min(o, l)
        prices = (float(tape.price_text(price)) for price in (o, h, l, c))
        found[bar[K.OPEN_MS] // MINUTE_MS + 1] = (*prices, float(decimal_text(bar[K.VOLUME], lots)))
    return found


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "UNIVERSE_S", 0.3)
    monkeypatch.setattr(runner, "OVERLAP_S", 0.3)


async def test_a_new_listing_under_a_glob_is_taken_up(tmp_path: Path) -> None:
    parts = Parts("binance", tmp_path)
    async with parts.at_work() as desk:
        now_ms = parts.emulator.now_ns() // 1_000_000 // MINUTE_MS * MINUTE_MS
        parts.emulator.venue.list_market(parts.sol, tape(parts.sol, now_ms - 20 * MINUTE_MS))
        await until(lambda: SOL in parts.said)
        await parts.more(SOL)
        await until(lambda: parts.said == dict.fromkeys((BTC, ETH, SOL), "online"))
        assert desk.reconnects == 0
        for symbol, native in ((BTC, parts.btc), (ETH, parts.eth), (SOL, parts.sol)):
            parts.assert_whole(symbol, native)


async def test_a_new_listing_that_nothing_names_is_left_alone(tmp_path: Path) -> None:
    parts = Parts("binance", tmp_path, BTC, "ETH*")
    async with parts.at_work():
        parts.emulator.venue.list_market(parts.sol, tape(parts.sol))
        asked = parts.emulator.venue.requests["exchangeInfo"]
        await until(lambda: parts.emulator.venue.requests["exchangeInfo"] >= asked + 3)
        assert set(parts.said) == {BTC, ETH}


@pytest.mark.parametrize("exchange", ["binance", "bitmex"])
async def test_a_halt_is_said_and_over_when_it_is_over(exchange: str, tmp_path: Path) -> None:
    parts = Parts(exchange, tmp_path)
    async with parts.at_work() as desk:
        for _ in range(2):  # what was said once does not stand in the way of the next time
            parts.emulator.venue.halt(parts.eth)
            await until(lambda: parts.said == {BTC: "online", ETH: "halted"})
            assert parts.reason(ETH) == "the exchange lists it and does not trade it"
            parts.emulator.venue.resume(parts.eth)
            await until(lambda: parts.said == dict.fromkeys((BTC, ETH), "online"))
        await parts.more(ETH)
        await parts.more(BTC)
        assert desk.reconnects == 0
        parts.assert_whole(BTC, parts.btc)
        parts.assert_whole(ETH, parts.eth)


async def test_one_that_is_named_and_halted_at_the_start_is_waited_for(tmp_path: Path) -> None:
    parts = Parts("binance", tmp_path, BTC, ETH)
    parts.emulator.venue.halt(parts.eth)
    resumed = asyncio.create_task(resume_once_halted(parts))
    async with parts.at_work():
        assert resumed.done()
        await parts.more(ETH)
        parts.assert_whole(ETH, parts.eth)


async def resume_once_halted(parts: Parts) -> None:
    await until(lambda: hasattr(parts, "desk") and parts.said == {BTC: "online", ETH: "halted"})
    parts.emulator.venue.resume(parts.eth)


@pytest.mark.parametrize("exchange", ["binance", "bybit", "bingx"])  # one for each kind of `Identity`
async def test_a_delisting_is_said_and_its_neighbour_misses_nothing(exchange: str, tmp_path: Path) -> None:
    parts = Parts(exchange, tmp_path, "BTC*", ETH)
    async with parts.at_work() as desk:
        parts.emulator.venue.delist(parts.eth)
        await until(lambda: parts.said == {BTC: "online", ETH: "delisted"})
        assert parts.reason(ETH) == "the exchange no longer lists it"
        rollovers = {"exchange": exchange}
        value = parts.metrics.registry.get_sample_value
        await until(lambda: value("lstmd_rollovers_total", rollovers) == 1)
        ended = len(parts.told[ETH])
        await parts.more(BTC, 6)
        assert len(parts.told[ETH]) == ended
        assert (desk.reconnects, value("lstmd_rollover_lost_trades_total", rollovers)) == (0, 0)
        parts.assert_whole(BTC, parts.btc)


async def test_one_that_is_back_goes_on_where_it_ended(tmp_path: Path) -> None:
    parts = Parts("binance", tmp_path, BTC, ETH)
    async with parts.at_work():
        gone = parts.emulator.venue.tapes[parts.eth]
        parts.emulator.venue.delist(parts.eth)
        await until(lambda: parts.said[ETH] == "delisted")
        parts.emulator.venue.list_market(parts.eth, gone)
        await until(lambda: parts.said[ETH] == "online")
        await parts.more(ETH)
        parts.assert_whole(ETH, parts.eth)


async def test_a_contract_that_is_gone_does_not_keep_its_neighbours_from_coming_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "LOOK_PAUSE_S", 0.1)
    parts = Parts("bingx", tmp_path)
    async with parts.at_work() as desk:
        monkeypatch.setattr(desks, "UNIVERSE_S", 3600.0)
        asked = parts.emulator.venue.requests["swap/v2/quote/contracts"]
        await until(lambda: parts.emulator.venue.requests["swap/v2/quote/contracts"] > asked)  # an hour begins
        parts.emulator.venue.delist(parts.eth)
        await parts.more(BTC)
        assert parts.said[ETH] != "delisted"
        await parts.emulator.cut()
        await until(lambda: not desk.live)  # the exchange knows no such topic
        await until(lambda: parts.said == {BTC: "online", ETH: "delisted"})
        await parts.more(BTC)
        parts.assert_whole(BTC, parts.btc)


@pytest.mark.parametrize("price_decimals", [3, 0])
async def test_a_new_tick_is_taken_up_and_the_ordinals_go_on(tmp_path: Path, price_decimals: int) -> None:
    parts = Parts("binance", tmp_path)
    states: list[tuple[str, str]] = []
    async with parts.at_work() as desk:
        watching = asyncio.create_task(watch(parts, BTC, states))
        before = parts.line(BTC)
        parts.emulator.venue.retick(parts.btc, price_decimals=price_decimals)
        decimals = parts.emulator.venue.tapes[parts.btc].price_decimals
        if price_decimals > 1:
            await until(lambda: any(m.market.price_decimals == decimals for m in desk.markets))
            await until(lambda: ("changed", "price_decimals 1 → 3") in states)
            assert parts.line(BTC) is not before
        await until(lambda: parts.said == dict.fromkeys((BTC, ETH), "online"))
        await parts.more(BTC, 5)
        await parts.more(ETH)
        watching.cancel()
        assert desk.reconnects == 0
        parts.assert_whole(BTC, parts.btc)
        parts.assert_whole(ETH, parts.eth)


async def watch(parts: Parts, symbol: str, states: list[tuple[str, str]]) -> None:
    while True:
        states += [(state, reason) for market, state, reason in parts.desk.standings() if market.symbol == symbol]
        await asyncio.sleep(0)


async def test_candles_of_another_unit_are_not_mixed_with_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts("binance", tmp_path)
    async with parts.at_work() as desk:
        plain = desk._history.markets

        async def redefined() -> dict[str, Market]:
            found = await plain()
            return found | {ETH: msgspec.structs.replace(found[ETH], volume_unit="contracts of 10 USD")}

        monkeypatch.setattr(desk._history, "markets", redefined)
        await until(lambda: parts.said == {BTC: "online", ETH: "changed"})
        assert "counts contracts of 10 USD: restart" in parts.reason(ETH)
        ended = len(parts.told[ETH])
        await parts.more(BTC, 6)
        assert (len(parts.told[ETH]), parts.said[ETH]) == (ended, "changed")
        assert desk.reconnects == 0
        parts.assert_whole(BTC, parts.btc)
