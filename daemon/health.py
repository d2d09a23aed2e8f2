"""What the daemon says of itself: availability of each market, info, health, and the watchdog's sign of life."""

import asyncio
import importlib.metadata
import resource
from pathlib import Path

import structlog

from config.schema import Config
from daemon import clock, systemd, topics
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.publisher import Publisher
from daemon.store import Store
from daemon.topics import Availability, Health, Info
from feeds.market import NS_PER_S
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
        self._config, self._model, self._desks = config, model, desks
        self._store, self._publisher, self._metrics = store, publisher, metrics
        self._base, self._boot_id = config.mqtt.base_topic, boot_id
        self._started_ns = clock.now_ns()
        self._said: dict[str, tuple[str, str]] = {}
        self._lag_s = 0.0
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Report until cancelled."""
        watchdog_s = systemd.watchdog_interval_s()
        health_s = watchdog_due_s = 0.0
        markets = -1
        while True:
            now_s = clock.monotonic_s()
            if markets != (markets := sum(len(desk.markets) for desk in self._desks)):
                self._publisher.retain(f"{self._base}/info", topics.encode(self.info()))
            for desk in self._desks:
                for market in desk.markets:
                    state, reason = desk.availability(market)
                    self._say(market.market.exchange, market.market.symbol, market.market.slug, state, reason)
            if now_s >= health_s:
                health_s = now_s + HEALTH_S
                self._publisher.retain(f"{self._base}/health", topics.encode(self.health()))
            if watchdog_s is not None and now_s >= watchdog_due_s and self._alive():
                watchdog_due_s = now_s + watchdog_s
                systemd.notify("WATCHDOG=1", f"STATUS={markets} markets, outbox {self._store.depth()[0]}")
            began_s = clock.monotonic_s()
            await asyncio.sleep(TICK_S)
            self._lag_s = max(0.0, clock.monotonic_s() - began_s - TICK_S)
            self._metrics.loop_lag_seconds.observe(self._lag_s)

    def _alive(self) -> bool:
        """Tell whether every feed is either fed or has said why not: a silent feed that claims to be live is a hang."""
        return all(
            desk.availability(market)[1] != "" or desk.availability(market)[0] == "online"
            for desk in self._desks
            for market in desk.markets
        )

    def _say(self, exchange: str, symbol: str, slug: str, state: str, reason: str) -> None:
        topic = f"{self._base}/{exchange}/{slug}/availability"
        known = self._said.get(topic)
        if known == (state, reason):
            return
        self._said[topic] = (state, reason)
        if known is None or known[0] != state:
            self._log.info("availability", exchange=exchange, market=symbol, state=state, reason=reason)
        since = topics.rfc3339(clock.now_ns())
        payload = Availability(exchange=exchange, symbol=symbol, state=state, reason=reason, since=since)  # type: ignore[arg-type]
        self._publisher.retain(topic, topics.encode(payload))

    def say_offline(self) -> None:
        """Say of every market that nothing more will come."""
        for desk in self._desks:
            for market in desk.markets:
                self._say(market.market.exchange, market.market.symbol, market.market.slug, "offline", "stopped")

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
                {"exchange": m.market.exchange, "symbol": m.market.symbol, "market": m.market.slug, "candles": " ".join(m.channels)}
                for desk in self._desks
                for m in desk.markets
            ],
        )

    def health(self) -> Health:
        """Return how it runs, and set the gauges that say the same."""
        depth, oldest_ns = self._store.depth()
        age_s = max(0.0, (clock.now_ns() - oldest_ns) / NS_PER_S) if depth else 0.0
        self._metrics.outbox_depth.set(depth)
        self._metrics.outbox_age_seconds.set(age_s)
        return Health(
            uptime_s=round((clock.now_ns() - self._started_ns) / NS_PER_S, 3),
            rss_bytes=int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES,
            outbox_depth=depth,
            outbox_age_s=round(age_s, 3),
            loop_lag_ms=round(self._lag_s * 1e3, 3),
            feeds={f"{desk.number} {desk.exchange}": self._feed(desk) for desk in self._desks},
        )

    def _feed(self, desk: Desk) -> dict[str, float | int | str | None]:
        newest_ns = max((m.last_event_ns for m in desk.markets), default=0)
        silent_s = round((clock.now_ns() - newest_ns) / NS_PER_S, 3) if newest_ns else None
        lag_ns = min((m.last_event_ns - m.clock.now_ns for m in desk.markets if m.last_event_ns), default=0)
        self._metrics.feed_lag_seconds.labels(desk.exchange).set(lag_ns / NS_PER_S)
        counted = sum((m.counts for m in desk.markets), start=type(desk.markets[0].counts)()) if desk.markets else {}
        return {
            "live": int(desk.live),
            "reason": desk.reason or None,
            "reconnects": desk.reconnects,
            "silent_s": silent_s,
            "lag_ms": round(lag_ns / 1e6, 1),
            **{f"trades_{name}" if name != "mismatch" else "candle_mismatches": n for name, n in sorted(counted.items())},
        }
