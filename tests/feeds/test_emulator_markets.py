"""Markets of the emulated exchange that come, go, stop, resume and change their tick."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.capture import AggTrade
from feeds.emulator import Tape
from feeds.emulator.sources import tape_of_trades
from feeds.emulator.tape import MINUTE_MS, K, Rows, T, fold
from tests.feeds.emulators import BEGIN_MS, START_MS, HandClock, ask, get, invented, joined, running

FAR_MS = BEGIN_MS + 10 * 3_600_000


def traded(tape: Tape, until_ms: int = FAR_MS) -> Rows:
    return tape.trades(0, until_ms)


def assert_candles_are_the_fold(tape: Tape, now_ms: int) -> None:
    bars = np.array(tape.candles(MINUTE_MS, start_ms=0, end_ms=1 << 60, now_ms=now_ms))
    assert np.array_equal(bars[bars[:, K.FILLS] > 0], fold(traded(tape, now_ms), MINUTE_MS))


@given(
    halts=st.lists(st.tuples(st.integers(1, 9_000_000), st.integers(0, 20_000_000)), min_size=1, max_size=3),
    looks=st.integers(0, 5_000_000),
)
@settings(deadline=None, max_examples=25)
def test_a_halt_leaves_a_hole_in_time_and_none_in_the_ids(halts: list[tuple[int, int]], looks: int) -> None:
    tape, never = invented("XRPUSDT"), invented("XRPUSDT")
    now, holes = BEGIN_MS, []
    for wait, pause in halts:
        now += wait
        tape.trades(0, now + looks)  # the tape may have grown beyond the halt
        tape.halt(now)
        assert tape.halted
        assert len(tape.trades(now - 1, now + pause)) == 0
        holes.append((now, now + pause))
        now += pause
        assert_candles_are_the_fold(tape, now)
        tape.resume(now)
        assert not tape.halted
    until = now + 9_000_000
    rows, whole = traded(tape, until), traded(never, until)
    kept = np.ones(len(whole), bool)
    for start, end in holes:
        kept &= (whole[:, T.TIME] < start) | (whole[:, T.TIME] >= end)
    same = [T.TIME, T.PRICE, T.SIZE, T.MAKER]
    assert np.array_equal(rows[:, same], whole[kept][:, same])
    assert np.array_equal(rows[:, T.ID], np.arange(1, len(rows) + 1))
    assert (rows[1:, T.FIRST] == rows[:-1, T.LAST] + 1).all()
    assert_candles_are_the_fold(tape, until)


def test_a_finer_tick_keeps_the_past_and_spreads_the_future() -> None:
    tape, at = invented(), START_MS
    before, bars = traded(tape).copy(), tape.candles(MINUTE_MS, start_ms=0, end_ms=at - MINUTE_MS, now_ms=at)
    tape.retick(at, 3)
    assert (tape.price_decimals, tape.tick) == (3, 1)
    after = traded(tape)
    past = after[:, T.TIME] < at
    assert np.array_equal(after[past, T.PRICE], before[past, T.PRICE] * 100)
    assert np.array_equal(after[:, T.PRICE] // 100, before[:, T.PRICE])
    assert len(np.unique(after[~past, T.PRICE] % 100)) == 100
    again = tape.candles(MINUTE_MS, start_ms=0, end_ms=at - MINUTE_MS, now_ms=at)
    assert [bar[K.QUOTE] for bar in again] == [bar[K.QUOTE] * 100 for bar in bars]
    assert_candles_are_the_fold(tape, FAR_MS)


def test_a_coarser_tick_rounds_the_future() -> None:
    tape, at = invented(), START_MS
    before = traded(tape).copy()
    tape.retick(at, -1)
    assert (tape.price_decimals, tape.tick, tape.price_text(tape.tick)) == (1, 100, "10.0")
    after = traded(tape)
    past = after[:, T.TIME] < at
    assert np.array_equal(after[past], before[past])
    assert (after[~past, T.PRICE] % 100 == 0).all()
    assert (np.abs(after[:, T.PRICE] - before[:, T.PRICE]) <= 50).all()
    assert_candles_are_the_fold(tape, FAR_MS)


def test_a_recording_is_halted_and_reticked_as_well() -> None:
    rows = [AggTrade(n, f"{100 + n % 7}.5", "2", n, n, BEGIN_MS + n * 10_000, n % 2 == 0) for n in range(1, 100)]
    tape = tape_of_trades("X", rows)
    tape.halt(BEGIN_MS + 200_000)
    tape.resume(BEGIN_MS + 300_000)
    tape.retick(BEGIN_MS + 500_000, 0)
    after = traded(tape)
    assert after[:, T.ID].tolist() == list(range(1, 90))
    assert (after[after[:, T.TIME] >= BEGIN_MS + 500_000, T.PRICE] % 10 == 0).all()
    assert_candles_are_the_fold(tape, FAR_MS)


async def contracts(port: int) -> dict[str, dict[str, Any]]:
    return {one["symbol"]: one for one in (await get(port, "exchangeInfo"))[1]["symbols"]}


async def test_markets_come_and_go() -> None:
    hand = HandClock()
    streams = ("solusdt@markPrice@1s", "ethusdt@markPrice@1s", "btcusdt@markPrice@1s")
    async with running(hand) as (emulator, port), joined(port, "/market/ws") as socket:
        await ask(socket, "SUBSCRIBE", *streams)
        hand.advance(5)
        assert {msgspec.json.decode(await socket.recv())["s"] for _ in range(2)} == {"BTCUSDT", "ETHUSDT"}
        emulator.venue.list_market("SOLUSDT", invented("SOLUSDT"))
        emulator.venue.delist("ETHUSDT")
        hand.advance(5)
        assert {msgspec.json.decode(await socket.recv())["s"] for _ in range(2)} == {"BTCUSDT", "SOLUSDT"}
        assert set(await contracts(port)) == {"BTCUSDT", "SOLUSDT"}
        assert (await get(port, "klines", symbol="ETHUSDT", interval="1m"))[1]["code"] == -1121


async def test_a_halted_market_is_listed_and_not_traded() -> None:
    hand = HandClock()
    async with running(hand) as (emulator, port), joined(port, "/market/ws") as socket:
        await ask(socket, "SUBSCRIBE", "btcusdt@aggTrade", "ethusdt@aggTrade")
        emulator.venue.halt("BTCUSDT")
        hand.advance(300)
        assert {msgspec.json.decode(await socket.recv())["s"] for _ in range(20)} == {"ETHUSDT"}
        assert {name: one["status"] for name, one in (await contracts(port)).items()} == {
            "BTCUSDT": "TRADING_HALT", "ETHUSDT": "TRADING"
        }  # fmt: skip
        _, bars = await get(port, "klines", symbol="BTCUSDT", interval="1m", limit=4)
        assert [bar[5] for bar in bars] == ["0.000"] * 4
        emulator.venue.resume("BTCUSDT")
        hand.advance(300)
        seen = set[str]()
        while len(seen) < 2:
            seen.add(msgspec.json.decode(await socket.recv())["s"])
        assert (await contracts(port))["BTCUSDT"]["status"] == "TRADING"


@pytest.mark.parametrize(("price_decimals", "tick"), [(3, "0.001"), (0, "1.0")])
async def test_a_new_tick_is_announced_and_traded(price_decimals: int, tick: str) -> None:
    hand = HandClock()
    async with running(hand) as (emulator, port), joined(port, "/market/ws/btcusdt@aggTrade") as socket:
        await ask(socket, "LIST_SUBSCRIPTIONS")
        emulator.venue.retick("BTCUSDT", price_decimals=price_decimals)
        hand.advance(300)
        prices = [msgspec.json.decode(await socket.recv())["p"] for _ in range(20)]
        digits = {len(price.rstrip("0").partition(".")[2]) for price in prices}
        assert max(digits) == max(price_decimals, 0)
        assert (await contracts(port))["BTCUSDT"]["filters"][0]["tickSize"] == tick
