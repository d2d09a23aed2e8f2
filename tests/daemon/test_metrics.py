"""Figures count, and are served where the operator wants them."""

import urllib.request

import pytest

from daemon.metrics import Metrics, MetricsError, MetricsServer


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_what_was_counted_is_served() -> None:
    metrics = Metrics()
    server = MetricsServer(metrics, "127.0.0.1:0")
    try:
        metrics.trades_total.labels("binance").inc(3)
        metrics.outbox_depth.set(7)
        metrics.candle_to_signal_seconds.observe(0.002)
        text = scrape(server.port)
    finally:
        server.close()
    assert 'lstmd_trades_total{exchange="binance"} 3.0' in text
    assert "lstmd_outbox_depth 7.0" in text
    assert 'lstmd_candle_to_signal_seconds_bucket{le="0.0025"} 1.0' in text


def test_stages_are_counted_many_at_a_time() -> None:
    metrics = Metrics()
    metrics.stages.observe("store", [1, 2, 3, 900, 7_000_000])
    metrics.stages.observe("store", [2])
    metrics.stages.observe("publish", [])
    found = metrics.registry.get_sample_value

    def bucket(le: str) -> float | None:
        return found("lstmd_stage_seconds_bucket", {"stage": "store", "le": le})

    assert [bucket(le) for le in ("1e-06", "2e-06", "5e-06", "0.001", "5.0", "+Inf")] == [1, 3, 4, 5, 5, 6]
    assert found("lstmd_stage_seconds_count", {"stage": "store"}) == 6
    assert found("lstmd_stage_seconds_sum", {"stage": "store"}) == pytest.approx(7.000908)
    assert found("lstmd_stage_seconds_count", {"stage": "publish"}) is None


def test_two_daemons_in_one_process_do_not_share_figures() -> None:
    one, other = Metrics(), Metrics()
    one.outbox_depth.set(5)
    assert other.registry.get_sample_value("lstmd_outbox_depth") == 0
    assert one.names() == other.names()


def test_a_port_in_use_is_said_in_one_line() -> None:
    server = MetricsServer(Metrics(), "127.0.0.1:0")
    try:
        with pytest.raises(
            MetricsError, match=r"^metrics.listen: cannot listen on 127.0.0.1:\d+ \(Address already in use\)$"
        ):
            MetricsServer(Metrics(), f"127.0.0.1:{server.port}")
    finally:
        server.close()
