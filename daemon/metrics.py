"""Figures for Prometheus, all named here, served on an address of the operator's choice.

docs/metrics.md lists them; a test compares.
"""

import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate
from wsgiref.simple_server import WSGIServer

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

_LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STAGE_S = tuple(float(f"{figure}e{power}") for power in range(-6, 1) for figure in (1, 2, 5))
_STEP_S = (2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2, 0.1)


class MetricsError(Exception):
    """The figures cannot be served where the operator wants them."""


class Stages(Collector):
    """A histogram with one label that takes many values at once: at a full minute there are thousands."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = bounds_s
        self._bounds_us = np.array(bounds_s) * 1e6
        self._counts: dict[str, list[int]] = {}
        self._sums_s: dict[str, float] = {}

    def observe(self, stage: str, values_us: Sequence[int]) -> None:
        """Count values, microseconds."""
        if not values_us:
            return
        found = np.bincount(np.searchsorted(self._bounds_us, values_us), minlength=len(self._bounds_s) + 1).tolist()
        known = self._counts.get(stage, [0] * len(found))
        self._counts[stage] = [a + b for a, b in zip(known, found, strict=True)]
        self._sums_s[stage] = self._sums_s.get(stage, 0.0) + sum(values_us) / 1e6

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give the counts as Prometheus wants them, each bucket with those below it."""
        text = "Time of a signal by stage, from the exchange's event to the broker's acknowledgement"
        family = HistogramMetricFamily("lstmd_stage_seconds", text, labels=["stage"])
        names = [*map(str, self._bounds_s), "+Inf"]
        for stage, counts in list(self._counts.items()):
            family.add_metric([stage], list(zip(names, accumulate(counts), strict=True)), self._sums_s[stage])
        yield family


class Metrics:
    """The daemon's counters, gauges and histograms in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.trades_total = Counter("lstmd_trades_total", "Trades applied to candles", ["exchange"], registry=registry)
        self.candles_closed_total = Counter(
            "lstmd_candles_closed_total", "Candles closed, by origin", ["exchange", "origin"], registry=registry
        )
        self.signals_total = Counter(
            "lstmd_signals_total",
            "Durable messages into the outbox, by kind",
            ["exchange", "kind"],
            registry=registry,
        )
        self.live_total = Counter("lstmd_live_total", "Provisional signals published", ["exchange"], registry=registry)
        self.published_total = Counter(
            "lstmd_published_total", "Durable messages that the broker acknowledged", registry=registry
        )
        self.malformed_total = Counter(
            "lstmd_malformed_total", "Frames or rows that were not understood", ["exchange", "kind"], registry=registry
        )
        self.late_trades_total = Counter(
            "lstmd_late_trades_total", "Trades that came after their candle had closed", ["exchange"], registry=registry
        )
        self.candle_mismatches_total = Counter(
            "lstmd_candle_mismatches_total",
            "Candles of ours that were not the exchange's own",
            ["exchange"],
            registry=registry,
        )
        self.gaps_total = Counter(
            "lstmd_gaps_total", "Interruptions after which trades may be missing", ["exchange"], registry=registry
        )
        self.rollovers_total = Counter(
            "lstmd_rollovers_total", "Connections replaced before their end", ["exchange"], registry=registry
        )
        self.rollover_lost_trades_total = Counter(
            "lstmd_rollover_lost_trades_total",
            "Trades that a replaced connection and its successor prove to exist, and that came on neither",
            ["exchange"],
            registry=registry,
        )
        self.repairs_total = Counter(
            "lstmd_repairs_total", "Gaps filled from the exchange's history", ["exchange"], registry=registry
        )
        self.reconnects_total = Counter(
            "lstmd_reconnects_total",
            "Connections made again, to exchanges or broker",
            ["peer"],
            registry=registry,
        )
        self.outbox_depth = Gauge("lstmd_outbox_depth", "Durable messages not yet acknowledged", registry=registry)
        self.outbox_age_seconds = Gauge("lstmd_outbox_age_seconds", "Age of the oldest of them", registry=registry)
        self.feed_lag_seconds = Gauge(
            "lstmd_feed_lag_seconds",
            "Receive time less event time, newest trade",
            ["exchange"],
            registry=registry,
        )
        self.candle_to_signal_seconds = Histogram(
            "lstmd_candle_to_signal_seconds",
            "From the frame that closed a candle to its signal in the outbox",
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.stages = Stages(_STAGE_S)
        registry.register(self.stages)
        self.step_seconds = Histogram(
            "lstmd_step_seconds", "One step of features and model", buckets=_STEP_S, registry=registry
        )
        self.loop_lag_seconds = Histogram(
            "lstmd_loop_lag_seconds", "How late the event loop ran a timer", buckets=_LATENCY_S, registry=registry
        )

    def names(self) -> list[str]:
        """Names as Prometheus shows them, without the suffixes of histograms."""
        families = self.registry.collect()
        return sorted(f.name + ("_total" if f.type == "counter" else "") for f in families)


class MetricsServer:
    """Serves /metrics from a thread of its own, so that no scrape waits for the event loop, nor it for a scrape."""

    def __init__(self, metrics: Metrics, listen: str) -> None:
        """Start to serve on `listen`, ``host:port`` (port 0: any free one; see `port`).

        Raises:
            MetricsError: the address cannot be listened on.

        """
        host, _, port = listen.rpartition(":")
        try:
            self._server: WSGIServer
            self._thread: threading.Thread
            self._server, self._thread = start_http_server(int(port), host, registry=metrics.registry)
        except OSError as error:
            raise MetricsError(f"metrics.listen: cannot listen on {listen} ({error.strerror or error})") from None
        self.port = int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
