"""What the daemon says of itself: availability of each market, info, health, and the watchdog's sign of life."""

import asyncio
import collections
import importlib.metadata
import resource
from pathlib import Path
from typing import NoReturn

import structlog
from prometheus_client import Counter

from config.schema import Config
from daemon import clock, systemd, topics
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.publisher import Publisher
from daemon.store import Store
from daemon.topics import Availability, Health, Info
from feeds.market import NS_PER_S, Market
from feeds.sequence import Verdict
from inference.engine import Model

TICK_S = 0.5
"""How often availability is looked at and the loop's lag measured."""
HEALTH_S = 10.0
_PAGE_BYTES = resource.getpagesize()


class Reporter:
    """Keeps the retained topics that explain silence up to date."""

    def __init__(
        self,
        config: Config,
        model: Model,
        desks: list[Desk],
        store: Store,
        publisher: Publisher,
        metrics: Metrics,
        boot_id: str,
    ) -> None:
        """Set up; `run` keeps the topics up to date."""
        self._config, self._model, self._desks = config, model, desks
        self._store, self._publisher, self._metrics = store, publisher, metrics
        self._base, self._boot_id = config.mqtt.base_topic, boot_id
        self._started_ns = clock.now_ns()
        self._said: dict[str, Availability] = {}
        self._counted: dict[str, int] = {}
        self._lag_s = 0.0
        self._log = structlog.get_logger()

    async def run(self) -> NoReturn:
        """Report until cancelled."""
        watchdog_s = systemd.watchdog_interval_s()
        health_s = watchdog_due_s = 0.0
        markets = -1
        while True:
            now_s = clock.monotonic_s()
            if markets != (markets := sum(len(desk.markets) for desk in self._desks)):
                self._publisher.retain(f"{self._base}/info", topics.encode(self.info()))
            for desk in self._desks:
                for standing in desk.standings():
                    self._say(*standing)
            if now_s >= health_s:
                health_s = now_s + HEALTH_S
                self._publisher.retain(f"{self._base}/health", topics.encode(self.health()))
            if watchdog_s is not None and now_s >= watchdog_due_s:
                watchdog_due_s = now_s + watchdog_s
                systemd.notify("WATCHDOG=1", f"STATUS={markets} markets, outbox {self._store.load().rows}")
            began_s = clock.monotonic_s()
            await asyncio.sleep(TICK_S)
            self._lag_s = max(0.0, clock.monotonic_s() - began_s - TICK_S)
            self._metrics.loop_lag_seconds.observe(self._lag_s)

    def _say(self, market: Market, state: topics.AvailabilityState, reason: str) -> None:
        topic = topics.market_topic(self._base, market, "availability")
        known = self._said.get(topic)
        if known and (known.state, known.reason) == (state, reason):
            return
        since = topics.rfc3339(clock.now_ns())
        if known and known.state == state:
            since = known.since
        else:
            self._log.info("availability", exchange=market.exchange, market=market.symbol, state=state, reason=reason)
        payload = Availability(exchange=market.exchange, symbol=market.symbol, state=state, reason=reason, since=since)
        self._said[topic] = payload
        self._publisher.retain(topic, topics.encode(payload))

    def say_offline(self) -> None:
        """Say of every market that nothing more will come."""
        for desk in self._desks:
            for market, _, _ in desk.standings():
                self._say(market, "offline", "stopped")

    def info(self) -> Info:
        """Return what runs."""
        return Info(
            version=importlib.metadata.version("lstmd"),
            boot_id=self._boot_id,
            started_at=topics.rfc3339(self._started_ns),
            config_hash=self._config.fingerprint(),
            model=self._model.id,
            policy=self._model.policy,
            markets=[
                {
                    "exchange": m.market.exchange,
                    "symbol": m.market.symbol,
                    "market": m.market.slug,
                    "candles": " ".join(m.channels),
                }
                for desk in self._desks
                for m in desk.markets
            ],
            stores_set_aside=self._store.set_aside,
        )

    def health(self) -> Health:
        """Return how it runs, and set the gauges that say the same."""
        load = self._store.load()
        age_s = max(0.0, (self._exchange_ns() - load.oldest_ns) / NS_PER_S) if load.rows else 0.0
        self._metrics.outbox_depth.set(load.rows)
        self._metrics.outbox_age_seconds.set(age_s)
        self._count("published", self._metrics.published_total, self._publisher.shipped)
        self._count("broker", self._metrics.reconnects_total.labels("broker"), self._publisher.reconnects)
        return Health(
            uptime_s=round((clock.now_ns() - self._started_ns) / NS_PER_S, 3),
            rss_bytes=int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES,
            outbox_depth=load.rows,
            outbox_age_s=round(age_s, 3),
            loop_lag_ms=round(self._lag_s * 1e3, 3),
            feeds={f"{desk.number} {desk.exchange}": self._feed(desk) for desk in self._desks},
        )

    def _exchange_ns(self) -> int:
        """Return the exchanges' time, in which the outbox's age is counted: a tape may be years old."""
        return max((m.clock.now_ns for desk in self._desks for m in desk.markets), default=0)

    def _count(self, name: str, counter: Counter, total: int) -> None:
        """Bring a counter up to a total that is kept elsewhere under `name`."""
        counter.inc(total - self._counted.get(name, 0))
        self._counted[name] = total

    def _feed(self, desk: Desk) -> dict[str, float | int | str | None]:
        newest_ns = max((m.last_event_ns for m in desk.markets), default=0)
        silent_s = round((clock.now_ns() - newest_ns) / NS_PER_S, 3) if newest_ns else None
        lag_ns = min((m.last_event_ns - m.clock.now_ns for m in desk.markets if m.last_event_ns), default=0)
        self._metrics.feed_lag_seconds.labels(desk.exchange).set(lag_ns / NS_PER_S)
        counted: collections.Counter[str] = sum((m.counts for m in desk.markets), collections.Counter())
        closers = [channel.closer for m in desk.markets for channel in m.channels.values()]
        late = sum(closer.late for closer in closers)
        metrics, name = self._metrics, desk.exchange
        applied = counted[Verdict.NEXT] + counted[Verdict.GAP]
        self._count(f"trades {desk.number}", metrics.trades_total.labels(name), applied)
        self._count(f"late {desk.number}", metrics.late_trades_total.labels(name), late)
        self._count(f"feed {desk.number}", metrics.reconnects_total.labels(name), desk.reconnects)
        mismatches = counted.pop("mismatch", 0)
        self._count(f"mismatches {desk.number}", metrics.candle_mismatches_total.labels(name), mismatches)
        return {
            "live": int(desk.live),
            "reason": desk.reason or None,
            "reconnects": desk.reconnects,
            "markets_waiting": desk.waiting,
            "silent_s": silent_s,
            "lag_ms": round(lag_ns / 1e6, 1),
            "candle_mismatches": mismatches,
            **{f"trades_{verdict}": n for verdict, n in sorted(counted.items())},
        }
