"""What the daemon says of itself is true, typed, and said when it changes."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from config.schema import Config
from daemon import health
from daemon.desk import Desk
from daemon.health import Reporter
from daemon.metrics import Metrics
from daemon.mqtt import MqttLink
from daemon.pipeline import MarketPipeline, Pipeline
from daemon.publisher import Publisher
from daemon.store import Store
from daemon.topics import Availability, Health, Info, encode
from feeds.exchanges.binance import BinanceCodec
from tests.daemon.brokers import until
from tests.daemon.lines import BEGIN, MARKET, MINUTE, MINUTE_NS, MODEL
from tests.daemon.test_publisher import enqueue

AVAILABILITY = "lstmd/binance/BTC-USDT-PERP/availability"


class Parts:
    """A reporter over one desk that is not connected to anything."""

    def __init__(self, folder: Path) -> None:
        config = Config(feeds=[{"exchange": "binance", "symbols": [MARKET.symbol]}])
        self.store, self.metrics = Store(folder / "lstmd.sqlite"), Metrics()
        pipeline = Pipeline(MODEL, base_topic="lstmd")
        self.desk = Desk(0, config.feeds[0], pipeline, self.store, self.metrics, lambda: None)
        self.market: MarketPipeline = pipeline.add(MARKET, BinanceCodec.traits)
        self.market.add(MINUTE, MODEL, has_kline=True, by_exchange=False)
        self.desk.markets.append(self.market)
        link = MqttLink("mqtt://127.0.0.1:9", client_id="x")
        self.publisher = Publisher(
            link, self.store, status_topic="s", online=b"", offline=b"", stamp=bytes, inflight_max=10,
            rng=random.Random(0),
        )  # fmt: skip
        self.reporter = Reporter(config, MODEL, [self.desk], self.store, self.publisher, self.metrics, "boot")

    def said(self, topic: str) -> bytes:
        return self.publisher._retained[topic]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path)
    yield made
    made.store.close()


def test_info_and_health_are_what_their_types_say(parts: Parts) -> None:
    info = msgspec.json.decode(encode(parts.reporter.info()), type=Info, strict=True)
    assert (info.model, info.boot_id) == (MODEL.id, "boot")
    assert info.markets == [
        {"exchange": "binance", "symbol": MARKET.symbol, "market": "BTC-USDT-PERP", "candles": "1m"}
    ]
    told = msgspec.json.decode(encode(parts.reporter.health()), type=Health, strict=True)
    assert told.rss_bytes > 10_000_000
    assert told.feeds["0 binance"]["live"] == 0
    assert told.feeds["0 binance"]["reason"] == "starting"


def test_the_outbox_is_as_old_as_the_exchange_says(parts: Parts) -> None:
    assert parts.reporter.health().outbox_age_s == 0
    enqueue(parts.store, "a", range(BEGIN, BEGIN + 3))
    parts.store._db.execute("UPDATE outbox SET time_ns = seq * ?", (MINUTE_NS,))
    parts.market.clock.set((BEGIN + 10) * MINUTE_NS)
    told = parts.reporter.health()
    assert (told.outbox_depth, told.outbox_age_s) == (3, 600.0)
    assert parts.metrics.registry.get_sample_value("lstmd_outbox_age_seconds") == 600.0


def test_counters_follow_the_totals_that_others_keep(parts: Parts) -> None:
    parts.market.counts.update({"next": 7, "gap": 2, "duplicate": 3, "mismatch": 1})
    parts.publisher.shipped = 5
    parts.reporter.health()
    parts.publisher.shipped = 6
    told = parts.reporter.health().feeds["0 binance"]
    value = parts.metrics.registry.get_sample_value
    assert value("lstmd_published_total") == 6
    assert value("lstmd_trades_total", {"exchange": "binance"}) == 9
    assert (told["trades_next"], told["trades_duplicate"], told["candle_mismatches"]) == (7, 3, 1)


async def test_a_market_that_waits_for_its_exchange_is_stale_with_the_reason(parts: Parts) -> None:
    parts.desk.markets.clear()
    task = asyncio.create_task(parts.reporter.run())
    await until(lambda: AVAILABILITY in parts.publisher._retained)
    task.cancel()
    said = msgspec.json.decode(parts.said(AVAILABILITY), type=Availability, strict=True)
    assert (said.symbol, said.state, said.reason) == (MARKET.symbol, "stale", parts.desk.reason)
    assert said.reason


async def test_availability_is_said_on_change_and_dated_by_its_state(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "TICK_S", 0.01)
    task = asyncio.create_task(parts.reporter.run())
    async with asyncio.timeout(30):
        await until(lambda: AVAILABILITY in parts.publisher._retained)
        first = msgspec.json.decode(parts.said(AVAILABILITY), type=Availability, strict=True)
        assert (first.state, first.reason) == ("stale", "starting")
        parts.desk._source.obstacle = "history unreachable"
        await until(lambda: json.loads(parts.said(AVAILABILITY))["reason"] == "history unreachable")
    task.cancel()
    assert json.loads(parts.said(AVAILABILITY))["since"] == first.since, "still the same state"
    parts.reporter.say_offline()
    last = msgspec.json.decode(parts.said(AVAILABILITY), type=Availability, strict=True)
    assert (last.state, last.reason) == ("offline", "stopped")
    assert msgspec.json.decode(parts.said("lstmd/health"), type=Health, strict=True).uptime_s >= 0
    assert msgspec.json.decode(parts.said("lstmd/info"), type=Info, strict=True).boot_id == "boot"
