from feeds.market import NS_PER_S, Candle, Origin
from feeds.silence import CONTRADICTIONS, FLOOR_S, Pace, Watch


def watch(*keys: str) -> Watch:
    return Watch(0.0, keys, silence_s=30.0, pace_s=20.0, kline_lag_s=5.0)


def kline(seq: int, volume: float) -> Candle:
    return Candle(
        seq=seq, open_time_ns=(seq - 1) * 60 * NS_PER_S, close_time_ns=seq * 60 * NS_PER_S, open=1.0, high=1.0, low=1.0,
        close=1.0, volume=volume, trades=0, closed=False, origin=Origin.EXCHANGE,
    )  # fmt: skip


def test_a_busy_connection_is_missed_within_seconds_and_a_slow_one_is_given_time() -> None:
    busy, slow = watch(), watch()
    for n in range(2_000):
        busy.data(n * 0.02)
    for n in range(4):
        slow.data(n * 9.0)
    assert busy.overdue_at_s() == 1_999 * 0.02 + FLOOR_S
    assert slow.overdue_at_s() == 27.0 + 30.0
    assert not busy.dead(44.0)
    assert busy.dead(45.0) == "no market data for 5 s"


def test_bursts_and_stalls_make_it_patient_again() -> None:
    pace = Pace(0.0, 1.0)
    for n in range(1, 100):
        pace.heard(float(n))
    steady_s = pace.overdue_at_s(60.0) - 99.0
    pace.heard(112.0)
    assert steady_s < 10.0 < pace.overdue_at_s(60.0) - 112.0


def test_a_mark_price_is_missed_by_its_own_pace_while_others_flow() -> None:
    both = watch("x", "y")
    for n in range(1, 100):
        both.data(float(n))
        both.mark("x", float(n))
        if n < 80:
            both.mark("y", float(n))
    assert both.dead(99.0) == "no mark price while others flow: y"
    assert both.mute(99.0) == ["y"]


def test_a_quiet_market_is_no_dead_stream_however_long() -> None:
    quiet = watch()
    quiet.trade("x", 0.0)
    for n in range(1, 500):
        quiet.data(float(n))
        quiet.kline("x", "1m", kline(1 + n // 60, 0.0 if n >= 60 else 3.0), float(n))
    assert not quiet.dead(499.5)


def test_klines_that_tell_of_trades_which_never_come_prove_the_stream_dead() -> None:
    deaf = watch()
    deaf.trade("x", 0.0)
    for n in range(1, 10 + CONTRADICTIONS):
        deaf.data(float(n))
        deaf.kline("x", "1m", kline(1, float(n)), float(n))
    assert deaf.dead(15.0) == "no trades while klines tell of them: x"
    deaf.trade("x", 15.0)
    assert not deaf.dead(15.0)


def test_a_kline_may_tell_of_the_last_trade_a_little_later() -> None:
    late = watch()
    for n in range(200):
        late.data(float(n))
        if n % 20 == 0:
            late.trade("x", float(n))
        late.kline("x", "1m", kline(1, float(n // 20)), n + 0.3)
    assert not late.dead(200.0)
