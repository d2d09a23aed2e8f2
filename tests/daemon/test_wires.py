"""Markets that leave a connection, and those that stay."""

import asyncio

import pytest
import structlog

from daemon.pipeline import Pipeline
from daemon.wires import Wires
from feeds import runner
from feeds.events import Event, MarketTrade
from feeds.exchanges import CODECS
from feeds.kinds import kind_of
from feeds.market import CandleSpec, Market
from tests.daemon.brokers import until
from tests.daemon.test_desk import MODEL, emulated, markets

MINUTE = CandleSpec.parse("1m")
BASES = ("BTC", "ETH", "SOL")


class Listener:
    """Hears what wires tell."""

    def __init__(self) -> None:
        self.trades: dict[str, list[int]] = {}
        self.said: list[str] = []

    def connected(self) -> None:
        self.said.append("connected")

    def lost(self, reason: str) -> None:
        self.said.append(f"lost: {reason}")

    def hindered(self, reason: str) -> None:
        self.said.append(reason)

    def rolled_over(self, lost: int) -> None:
        self.said.append(f"rolled over, {lost} lost")

    def events(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, MarketTrade):
                self.trades.setdefault(event.market.symbol, []).append(event.trade.id)


async def test_who_leaves_is_heard_no_more_and_who_stays_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "OVERLAP_S", 0.3)
    async with emulated(markets(*(base + "USDT" for base in BASES)), speed=240) as (emulator, port):
        kind = kind_of("binance", ws_url=f"ws://127.0.0.1:{port}")
        ear, pipeline = Listener(), Pipeline(MODEL, base_topic="x")
        listed = [
            Market(
                exchange="binance", symbol=f"{base}/USDT:USDT", native=f"{base}USDT", price_decimals=2, size_decimals=3
            )
            for base in BASES
        ]
        btc, eth, sol = (market.symbol for market in listed)
        wires = Wires(kind, [MINUTE], ear, structlog.get_logger(), copies=1)
        assert (wires.live, wires.reason) == (False, None)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            wires.connect([pipeline.add(market, CODECS["binance"].traits) for market in listed], group)
            wire = wires.of(btc)
            assert wire is not None
            assert wire is wires.of(eth) is wires.of(sol)
            await until(lambda: wires.live and len(ear.trades) == 3)
            assert wires.reason == ""
            wires.disconnect(eth)
            heard = len(ear.trades[eth])
            assert wires.of(eth) is None
            await until(lambda: "rolled over, 0 lost" in ear.said)
            wires.disconnect(eth)
            wires.disconnect(sol)  # before the first replacement is long over
            await until(lambda: ear.said.count("rolled over, 0 lost") == 2)
            before = len(ear.trades[btc])
            await until(lambda: len(ear.trades[btc]) > before + 20)
            assert len(ear.trades[eth]) == heard
            first = ear.trades[btc][0]
            assert ear.trades[btc] == list(range(first, first + len(ear.trades[btc])))
            assert (wires.live, ear.said.count("connected")) == (True, 1)
            wires.disconnect(btc)
            assert wire.stop.is_set()
            assert wires.reason is None
        assert [line for line in ear.said if line.startswith("lost")] == []
        assert emulator.venue.requests["websocket"] == 3
