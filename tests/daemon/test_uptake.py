"""Many markets at once: taken up and warmed in the configured order, with progress said, and few requests."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from config.schema import Config
from daemon import desk as desks
from daemon import keeper as keepers
from daemon.desk import Desk
from daemon.health import Reporter
from daemon.publisher import Publisher
from feeds.emulator.synthetic import synthetic_tape
from feeds.errors import RequestRefused
from feeds.events import FundingSettlement
from feeds.market import Candle, CandleSpec, Market
from tests.daemon.brokers import until
from tests.daemon.test_desk import BEGIN_MS, MODEL, at_work, emulated, feed, make, told

__all__ = ["make", "told"]  # fixtures
MANY = 60
NATIVES = [f"C{n:02}USDT" for n in range(MANY)]
SYMBOLS = [f"C{n:02}/USDT:USDT" for n in range(MANY)]
WANTED = ("C31/USDT:USDT", "C4*", "C05/USDT:USDT", "all")
ORDER = list(dict.fromkeys([SYMBOLS[31], *SYMBOLS[40:50], SYMBOLS[5], *SYMBOLS]))


class Gate:
    """Lets the first request for candles of each market through one by one, and notes whose it is."""

    def __init__(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self._open = asyncio.Semaphore(0)
        self._ask = desk._history.candles
        monkeypatch.setattr(desk._history, "candles", self._candles)

    def let(self, requests: int) -> None:
        for _ in range(requests):
            self._open.release()

    async def _candles(self, market: Market, spec: CandleSpec, **span: int) -> list[Candle]:
        if market.symbol not in self.asked:
            self.asked.append(market.symbol)
            await self._open.acquire()
        return await self._ask(market, spec, **span)


def said(desk: Desk) -> dict[str, tuple[str, str]]:
    return {market.symbol: (state, reason) for market, state, reason in desk.standings()}


def health(desk: Desk) -> Any:
    """Return what the health topic says of a feed."""
    publisher = Publisher.__new__(Publisher)
    publisher.shipped = publisher.reconnects = 0
    config = Config(feeds=[desk.feed])
    reporter = Reporter(config, MODEL, [desk], desk._store, publisher, desk._metrics, "boot")
    return reporter.health().feeds["0 binance"]


async def test_sixty_markets_are_warmed_in_the_stated_order_and_the_progress_is_said(
    make: Callable[..., Desk], told: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tapes = {native: synthetic_tape(native, seed=1, begin_ms=BEGIN_MS) for native in NATIVES}
    async with emulated(tapes, speed=60) as (emulator, port):
        desk = make(feed(port, *WANTED))
        gate = Gate(desk, monkeypatch)
        async with at_work(desk):
            await until(lambda: desk.live and len(gate.asked) == keepers.WARMING_MAX)
            assert [m.market.symbol for m in desk.markets] == ORDER
            assert list(said(desk)) == ORDER
            assert set(said(desk).values()) == {("warming", "1m: 0 of 9 candles")}
            assert health(desk)["markets_waiting"] == desk.waiting == MANY
            gate.let(12)
            await until(lambda: desk.waiting == MANY - 12)
            assert [symbol for symbol, (state, _) in said(desk).items() if state == "online"] == ORDER[:12]
            assert health(desk)["markets_waiting"] == MANY - 12
            assert emulator.venue.requests["fundingRate"] == 1, "one list for all"
            gate.let(1000)
            await until(lambda: desk.waiting == 0 and {state for state, _ in said(desk).values()} == {"online"})
            assert gate.asked == ORDER
            await until(lambda: len(told) == MANY and all(told.values()))
        for seqs in told.values():
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


async def test_settled_funding_of_many_comes_in_one_list_each_hour(
    make: Callable[..., Desk], told: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepers, "MANY", 3)
    monkeypatch.setattr("daemon.uptake.MANY", 3)
    tapes = {native: synthetic_tape(native, seed=1, begin_ms=BEGIN_MS) for native in NATIVES[:4]}
    async with emulated(tapes, speed=600, after_ms=7 * 3_600_000 + 50 * 60_000) as (emulator, port):
        desk = make(feed(port, "all"))
        async with at_work(desk):
            settled_ns = (BEGIN_MS + 8 * 3_600_000) * 1_000_000
            await until(lambda: len(desk.markets) == 4 and min(m.funding.newest_ns for m in desk.markets) == settled_ns)
            hours = desk.markets[0].clock.now_ns // (3600 * 10**9) - (settled_ns // (3600 * 10**9)) + 1
            assert 2 <= emulator.venue.requests["fundingRate"] <= 1 + hours
            for market in desk.markets:
                assert market.funding._rates == [
                    one.rate for one in await desk._history.funding(market.market, start_ns=0)
                ]


async def test_a_market_whose_history_is_refused_waits_and_the_others_do_not(
    make: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "REFUSED_PAUSE_S", 0.3)
    tapes = {native: synthetic_tape(native, seed=1, begin_ms=BEGIN_MS) for native in NATIVES[:3]}
    async with emulated(tapes) as (_, port):
        desk, refuses = make(feed(port, "all")), True
        plain = desk._history.funding

        async def funding(market: Market, *, start_ns: int) -> list[FundingSettlement]:
            if refuses and market.symbol == SYMBOLS[1]:
                raise RequestRefused("unknown contract")
            return await plain(market, start_ns=start_ns)

        monkeypatch.setattr(desk._history, "funding", funding)
        async with at_work(desk):
            await desk.settled.wait()
            await until(lambda: [state for state, _ in said(desk).values()].count("online") == 2)
            assert said(desk)[SYMBOLS[1]] == ("warming", "its history is refused: unknown contract")
            assert desk.waiting == 1
            refuses = False
            await until(lambda: {state for state, _ in said(desk).values()} == {"online"})
