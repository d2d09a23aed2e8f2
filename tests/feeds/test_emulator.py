"""The emulated exchange: tapes, what falls due, REST, websocket and faults; the clock is moved by hand."""

import asyncio
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus

from feeds.capture import AggTrade, read_agg_trades, read_candles
from feeds.emulator import Emulator, serve
from feeds.emulator.clock import VirtualClock
from feeds.emulator.dialects.binance import PACE, Binance
from feeds.emulator.sources import tape_of_candles, tape_of_trades
from feeds.emulator.tape import MINUTE_MS, K, Rows, T, decimal_text, fold, regroup
from feeds.emulator.venue import Venue
from feeds.emulator.websocket import TICK_S
from tests.data import shared
from tests.feeds.emulators import BEGIN_MS, START_MS, TIMEOUT_S, HandClock, ask, drained, get, invented, joined, running

# ---- tapes


def plain_fold(trades: Rows, step_ms: int) -> list[list[int]]:
    out: list[list[int]] = []
    for _, time, p, q, first, last, maker in trades.tolist():
        opened = time - time % step_ms
        if not out or out[-1][0] != opened:
            out.append([opened, p, p, p, p, 0, 0, 0, 0, 0, first, last])
        bar = out[-1]
        bar[2], bar[3], bar[4], bar[11] = max(bar[2], p), min(bar[3], p), p, last
        bar[5], bar[6], bar[7] = bar[5] + q, bar[6] + p * q, bar[7] + last - first + 1
        bar[8], bar[9] = bar[8] + q * (1 - maker), bar[9] + p * q * (1 - maker)
    return out


TRADES = st.lists(
    st.tuples(st.integers(0, 200_000), st.integers(1, 10**7), st.integers(1, 10**6), st.integers(1, 5), st.booleans()),
    max_size=40,
)


@given(steps=TRADES)
@settings(deadline=None)
def test_fold_is_the_plain_fold_and_merging_minutes_changes_nothing(
    steps: list[tuple[int, int, int, int, bool]],
) -> None:
    time, fill, rows = BEGIN_MS, 1, []
    for number, (wait, price, size, fills, maker) in enumerate(steps):
        time += wait
        rows.append((number, time, price, size, fill, fill + fills - 1, maker))
        fill += fills
    trades = np.array(rows, np.int64).reshape(-1, len(T))
    assert fold(trades, MINUTE_MS).tolist() == plain_fold(trades, MINUTE_MS)
    assert regroup(fold(trades, MINUTE_MS), 5 * MINUTE_MS).tolist() == plain_fold(trades, 5 * MINUTE_MS)


@given(scaled=st.integers(0, 10**15), decimals=st.integers(0, 8))
def test_decimal_text_is_the_number(scaled: int, decimals: int) -> None:
    text = decimal_text(scaled, decimals)
    assert float(text) == scaled / 10**decimals
    assert len(text.partition(".")[2]) == decimals


def test_a_seed_gives_one_tape_however_it_is_read() -> None:
    until = BEGIN_MS + 30 * 3_600_000
    one, other = invented(), invented()
    for now in range(BEGIN_MS, until, 1_234_567):
        other.trades(now - 60_000, now)
    assert one.trades(0, until).tobytes() == other.trades(0, until).tobytes()
    assert one.trades(0, until).tobytes() != invented(seed=4).trades(0, until).tobytes()
    assert not np.array_equal(one.trades(0, until)[:50, T.PRICE], invented("ETHUSDT").trades(0, until)[:50, T.PRICE])


def test_an_invented_tape_is_a_plausible_market() -> None:
    tape = invented()
    trades = tape.trades(0, BEGIN_MS + 3000 * MINUTE_MS)
    assert (np.diff(trades[:, T.ID]) == 1).all()
    assert (np.diff(trades[:, T.TIME]) >= 0).all()
    assert (trades[1:, T.FIRST] == trades[:-1, T.LAST] + 1).all()
    assert (trades[:, [T.PRICE, T.SIZE]] > 0).all()
    bars = tape.candles(MINUTE_MS, start_ms=0, end_ms=1 << 60, now_ms=BEGIN_MS + 3000 * MINUTE_MS - 1)
    assert len(bars) == 3000
    returns = np.diff(np.log([bar[K.CLOSE] for bar in bars]))
    assert 2e-4 < returns.std() < 2e-3
    spells = np.abs(returns[: len(returns) // 60 * 60]).reshape(-1, 60).mean(axis=1)
    assert spells.max() > 2 * spells.min()


def test_old_trades_are_let_go_and_candles_kept() -> None:
    tape = invented()
    later = BEGIN_MS + 6 * 86_400_000
    assert len(tape.trades(later - 2 * 86_400_000, later)) > 20_000
    assert len(tape.trades(0, BEGIN_MS + 86_400_000)) == 0
    assert len(tape.candles(3_600_000, start_ms=0, end_ms=later, now_ms=later)) == 6 * 24 + 1


def test_recorded_trades_are_put_in_order_once() -> None:
    rows = list(read_agg_trades(shared("trades/binance_um_APEUSDT-aggTrades-2024-10-18.zip")))[:3000]
    tape = tape_of_trades("APEUSDT", rows)
    assert (tape.price_decimals, tape.size_decimals, tape.begin_ms) == (4, 0, rows[0].time_ms)
    assert tape.end_ms == rows[-1].time_ms
    shuffled = tape_of_trades("APEUSDT", [*rows[1000:], *rows[:2000]])
    assert np.array_equal(shuffled.trades(0, 1 << 60), tape.trades(0, 1 << 60))
    with pytest.raises(ValueError, match="no trades"):
        tape_of_trades("APEUSDT", [])


def test_real_candles_become_trades_that_fold_into_them_again() -> None:
    path = shared("ohlcv/binance_um/DASHUSDT_1m_2023-07_2023-08.parquet")
    candles = read_candles(path)
    assert (candles.volume == 0).any()
    tape = tape_of_candles("DASHUSDT", candles)
    newest = int(candles.open_time_ns[-1]) // 1_000_000 + MINUTE_MS - 1
    bars = np.array(tape.candles(MINUTE_MS, start_ms=0, end_ms=1 << 60, now_ms=newest))
    assert np.array_equal(bars[:, K.OPEN_MS] * 1_000_000, candles.open_time_ns)
    for column, prices in zip((K.OPEN, K.HIGH, K.LOW, K.CLOSE), candles[1:5], strict=True):
        assert np.array_equal(bars[:, column] / 10**tape.price_decimals, prices)
    assert np.array_equal(bars[:, K.VOLUME] / 10**tape.size_decimals, candles.volume)


@given(
    now=st.integers(BEGIN_MS - 5, BEGIN_MS + 5_000_000), back=st.integers(0, 30), step=st.sampled_from([1, 3, 5, 60])
)
@settings(deadline=None, max_examples=60)
def test_candles_at_any_time_are_the_fold_of_the_trades_by_then(now: int, back: int, step: int) -> None:
    tape, step_ms = invented("DOGEUSDT"), step * MINUTE_MS
    start = now // step_ms * step_ms - back * step_ms
    expected = {bar[0]: bar for bar in plain_fold(tape.trades(0, now), step_ms)}
    got = tape.candles(step_ms, start_ms=start, end_ms=now + 10**9, now_ms=now)
    assert [bar for bar in got if bar[K.FILLS]] == [bar for opened, bar in expected.items() if opened >= start]
    assert [bar[0] for bar in got] == list(range(max(start, tape.begin_ms // step_ms * step_ms), now + 1, step_ms))
    assert all(bar[K.OPEN] == before[K.CLOSE] for before, bar in pairwise(got) if not bar[K.FILLS])


def test_a_window_that_begins_in_an_empty_interval_carries_the_close_before_it() -> None:
    rows = [AggTrade(1, "7", "1", 1, 1, BEGIN_MS, False), AggTrade(2, "9", "2", 2, 2, BEGIN_MS + 4 * MINUTE_MS, True)]
    tape = tape_of_trades("X", rows)
    now = BEGIN_MS + 6 * MINUTE_MS
    bars = tape.candles(MINUTE_MS, start_ms=BEGIN_MS + 2 * MINUTE_MS, end_ms=now + 1, now_ms=now)
    assert [(bar[K.OPEN], bar[K.CLOSE], bar[K.VOLUME]) for bar in bars] == [
        (7, 7, 0), (7, 7, 0), (9, 9, 2), (9, 9, 0), (9, 9, 0)
    ]  # fmt: skip


# ---- the clock and what falls due


def test_the_clock_stands_until_begun_and_then_runs_at_its_speed() -> None:
    hand = HandClock()
    clock = VirtualClock(5_000, speed=60.0, monotonic_ns=hand)
    hand.advance(3)
    assert (clock.running, clock.now_ns()) == (False, 5_000)
    clock.begin()
    hand.advance(2)
    clock.begin()
    assert (clock.running, clock.now_ns()) == (True, 5_000 + 120_000_000_000)
    with pytest.raises(ValueError, match="speed"):
        VirtualClock(0, speed=0)


STREAMS = ("btcusdt@aggTrade", "btcusdt@kline_1m", "btcusdt@kline_3m", "btcusdt@markPrice@1s", "nope@aggTrade", "x")


def played(ticks_ms: list[int], streams: tuple[str, ...] = STREAMS) -> list[tuple[str, dict[str, Any]]]:
    hand = HandClock()
    venue = Venue(VirtualClock(START_MS * 1_000_000, monotonic_ns=hand), {"BTCUSDT": invented()})
    wire = Binance(venue).connect("/market/stream", {"streams": "/".join(streams)}, 0.0)
    now, out = START_MS, []
    for tick in ticks_ms:
        now += tick
        frames = [msgspec.json.decode(str(frame)) for frame in wire.due(now)]
        due = [(frame["stream"], frame["data"]) for frame in frames]
        assert all(data["E"] <= now for _, data in due)
        assert all(data.get("T", 0) <= now for _, data in due if data["e"] == "aggTrade")
        out += due
    return out


@given(ticks=st.lists(st.integers(1, 90_000), min_size=1, max_size=30))
@settings(deadline=None, max_examples=30)
def test_trades_and_closed_candles_do_not_depend_on_the_pace_of_the_pump(ticks: list[int]) -> None:
    def lasting(events: list[tuple[str, dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        kept = [(n, d) for n, d in events if d["e"] == "aggTrade" or (d["e"] == "kline" and d["k"]["x"])]
        return {name: [d for n, d in kept if n == name] for name, _ in kept}

    slow = played(ticks)
    assert [d["E"] for _, d in slow] == sorted(d["E"] for _, d in slow)
    total = sum(ticks)
    assert lasting(slow) == lasting(played([7_000] * (total // 7_000) + [total % 7_000]))
    assert {name for name, _ in slow} <= set(STREAMS[:4])


def test_each_interval_closes_once_and_equals_the_fold_of_the_trades_that_were_pushed() -> None:
    events = played([400] * 2000)
    closed = [d["k"] for n, d in events if n == "btcusdt@kline_1m" and d["k"]["x"]]
    opens = [k["t"] for k in closed]
    assert opens == list(range(opens[0], opens[0] + len(opens) * MINUTE_MS, MINUTE_MS))
    assert len(opens) == 13
    trades = [d for n, d in events if n == "btcusdt@aggTrade"]
    assert all(b["a"] == a["a"] + 1 for a, b in pairwise(trades))
    for k in closed[1:]:
        inside = [d for d in trades if k["t"] <= d["T"] <= k["T"]]
        assert (k["o"], k["c"], k["n"]) == (inside[0]["p"], inside[-1]["p"], inside[-1]["l"] - inside[0]["f"] + 1)
        assert (k["f"], k["L"]) == (inside[0]["f"], inside[-1]["l"])
        assert float(k["h"]) == max(float(d["p"]) for d in inside)
        assert int(k["v"].replace(".", "")) == sum(int(d["q"].replace(".", "")) for d in inside)


def test_pushes_keep_the_pace_and_the_lag_of_the_exchange() -> None:
    events = played([20] * 6000)
    forming = [d["E"] for n, d in events if n == "btcusdt@kline_1m" and not d["k"]["x"]]
    assert len(forming) > 20
    assert min(b - a for a, b in pairwise(forming)) >= 250
    marks = [d["E"] for n, d in events if d["e"] == "markPriceUpdate"]
    assert marks == list(range(marks[0], marks[0] + 120_000, 1000))
    assert {d["E"] - d["T"] for _, d in events if d["e"] == "aggTrade"} == {PACE.trade_lag_ms}
    assert {d["E"] - d["k"]["T"] - 1 for _, d in events if d["e"] == "kline" and d["k"]["x"]} == {PACE.candle_lag_ms}
    assert {d["T"] for _, d in events if d["e"] == "markPriceUpdate"} == {(START_MS // 28_800_000 + 1) * 28_800_000}


def test_messages_have_the_fields_and_types_of_real_ones() -> None:
    rows = [msgspec.json.decode(line) for line in shared("live2026/frames.jsonl").read_bytes().splitlines()]
    real = {row["channel"]: msgspec.json.decode(row["raw"])["data"] for row in rows[:3]}
    ours = {d["e"]: d for _, d in played([500] * 60)}
    for channel, name in (("aggTrade", "aggTrade"), ("kline_1m", "kline"), ("markPrice@1s", "markPriceUpdate")):
        assert shape(ours[name]) == shape(real[channel])


def shape(value: Any) -> Any:
    return {key: shape(part) for key, part in value.items()} if isinstance(value, dict) else type(value)


# ---- the server


async def test_subscribe_list_unsubscribe_over_the_combined_stream() -> None:
    hand = HandClock()
    async with running(hand) as (emulator, port), joined(port, "/market/stream") as socket:
        assert not emulator.venue.clock.running
        assert await ask(socket, "SUBSCRIBE", *STREAMS) == {"result": None, "id": 1}
        assert emulator.venue.clock.running
        assert (await ask(socket, "LIST_SUBSCRIPTIONS", request_id=2))["result"] == list(STREAMS)
        hand.advance(90)
        seen = set()
        while len(seen) < 4:
            frame = msgspec.json.decode(await socket.recv())
            seen.add(frame["stream"])
            assert frame.keys() == {"stream", "data"}
        assert seen == set(STREAMS[:4])
        assert await ask(socket, "UNSUBSCRIBE", *STREAMS[1:], request_id=3) == {"result": None, "id": 3}
        assert (await ask(socket, "LIST_SUBSCRIPTIONS", request_id=4))["result"] == [STREAMS[0]]


@pytest.mark.parametrize(
    ("path", "combined"),
    [("/market/ws/btcusdt@aggTrade", False), ("/market/stream?streams=btcusdt@aggTrade/x@aggTrade", True)],
)
async def test_streams_named_in_the_path_need_no_request(path: str, combined: bool) -> None:
    hand = HandClock()
    async with running(hand) as (_, port), joined(port, path) as socket:
        await ask(socket, "LIST_SUBSCRIPTIONS")
        hand.advance(60)
        frame = msgspec.json.decode(await socket.recv())
        data = frame["data"] if combined else frame
        assert (data["e"], data["s"]) == ("aggTrade", "BTCUSDT")


@pytest.mark.parametrize("path", ["/ws", "/stream", "/public/stream"])
async def test_other_routes_acknowledge_and_stay_silent(path: str) -> None:
    hand = HandClock()
    async with (
        running(hand) as (_, port),
        joined(port, path) as silent,
        joined(port, "/market/ws") as live,
    ):
        assert await ask(silent, "SUBSCRIBE", *STREAMS) == {"result": None, "id": 1}
        await ask(live, "SUBSCRIBE", "btcusdt@markPrice@1s")
        for _ in range(5):
            hand.advance(30)
            assert "markPriceUpdate" in str(await live.recv())
        await silent.send('{"method":"LIST_SUBSCRIPTIONS","id":2}')
        assert msgspec.json.decode(await silent.recv()) == {"result": list(STREAMS), "id": 2}


async def test_the_book_family_carries_single_trades() -> None:
    hand = HandClock()
    async with running(hand) as (_, port), joined(port, "/public/ws") as socket:
        await ask(socket, "SUBSCRIBE", "btcusdt@aggTrade", "btcusdt@trade")
        hand.advance(300)
        data = [msgspec.json.decode(await socket.recv()) for _ in range(5)]
        assert {d["e"] for d in data} == {"trade"}
        assert [d["t"] for d in data] == list(range(data[0]["t"], data[0]["t"] + 5))


@pytest.mark.parametrize("text", ["{", '{"method":"DANCE","id":4}', '{"method":"SUBSCRIBE","params":"x","id":4}', "[]"])
async def test_bad_requests_are_answered_with_an_error(text: str) -> None:
    async with running(HandClock()) as (_, port), joined(port, "/market/ws") as socket:
        await socket.send(text)
        assert msgspec.json.decode(await socket.recv())["error"]["code"] == 2


async def test_too_many_requests_end_the_connection() -> None:
    async with running(HandClock()) as (_, port), joined(port, "/market/ws") as socket:
        for number in range(Binance.inbound_per_s):
            await ask(socket, "LIST_SUBSCRIPTIONS", request_id=number)
        with pytest.raises(ConnectionClosed) as closed:
            await ask(socket, "LIST_SUBSCRIPTIONS", request_id=99)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


async def test_a_cut_breaks_connections_without_a_farewell_and_refuse_keeps_them_out() -> None:
    hand = HandClock()
    async with running(hand) as (emulator, port):
        async with joined(port, "/market/ws/btcusdt@markPrice@1s") as socket:
            await ask(socket, "LIST_SUBSCRIPTIONS")
            hand.advance(5)
            await socket.recv()
            emulator.refuse = True
            await emulator.cut()
            with pytest.raises(ConnectionClosed) as closed:
                await drained(socket)
            assert closed.value.rcvd is None
            with pytest.raises(InvalidStatus, match="503"):
                await joined(port, "/market/ws")
            assert (await get(port, "time"))[0] == 503
            emulator.refuse = False
            assert (await get(port, "time"))[0] == 200
        async with joined(port, "/market/ws/btcusdt@markPrice@1s") as again:
            await ask(again, "LIST_SUBSCRIPTIONS")
            hand.advance(5)
            assert "markPriceUpdate" in str(await again.recv())
        assert emulator.venue.requests["websocket"] == 2


async def test_a_mute_exchange_loses_what_falls_due() -> None:
    hand = HandClock()
    async with (
        running(hand) as (emulator, port),
        joined(port, "/market/ws/btcusdt@aggTrade") as socket,
    ):
        await ask(socket, "LIST_SUBSCRIPTIONS")
        hand.advance(30)
        last = msgspec.json.decode(await socket.recv())["a"]
        emulator.mute = True
        hand.advance(300)
        while emulator.venue.lost < 10:  # noqa: ASYNC110 - the emulator has no event for what it did not send
            await asyncio.sleep(TICK_S)
        await ask(socket, "LIST_SUBSCRIPTIONS", request_id=2)
        emulator.mute = False
        hand.advance(60)
        after = msgspec.json.decode(await socket.recv())["a"]
        assert after > last + 10


async def test_serve_says_its_port_and_ends_when_told() -> None:
    emulator = Emulator({"BTCUSDT": invented()}, start_ns=START_MS * 1_000_000)
    stop, ports = asyncio.Event(), asyncio.Queue[int]()
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        group.create_task(serve(emulator, stop, host="127.0.0.1", port=0, ready=ports.put_nowait))
        assert await get(await ports.get(), "ping") == (200, {})
        stop.set()


# ---- REST


async def test_klines_are_the_fold_of_agg_trades_and_nothing_is_newer_than_the_clock() -> None:
    hand = HandClock()
    async with running(hand) as (emulator, port):
        emulator.venue.clock.begin()
        for seconds in (0.0, 7.7, 42.0, 300.4):
            hand.advance(seconds)
            now = emulator.venue.clock.now_ms()
            _, bars = await get(port, "klines", symbol="BTCUSDT", interval="1m", limit=10, endTime=now + 10**9)
            _, trades = await get(
                port, "aggTrades", symbol="BTCUSDT", startTime=bars[0][0], endTime=now + 10**9, limit=1000
            )
            assert len(trades) < 1000
            assert all(trade["T"] <= now for trade in trades)
            assert bars[-1][0] <= now <= bars[-1][6]
            assert [bar[0] for bar in bars] == list(range(bars[0][0], bars[0][0] + 600_000, 60_000))
            for bar in bars:
                inside = [t for t in trades if bar[0] <= t["T"] <= bar[6]]
                if inside:
                    prices = [t["p"] for t in inside]
                    assert bar[1:5] == [prices[0], max(prices, key=float), min(prices, key=float), prices[-1]]
                assert bar[5] == decimal_text(sum(int(t["q"].replace(".", "")) for t in inside), 3)
                assert bar[8] == sum(t["l"] - t["f"] + 1 for t in inside)


async def test_klines_pages() -> None:
    async with running(HandClock()) as (_, port):
        _, newest = await get(port, "klines", symbol="ETHUSDT", interval="1m")
        assert len(newest) == 181
        first = newest[0][0]
        _, page = await get(port, "klines", symbol="ETHUSDT", interval="1m", startTime=first + 1, limit=7)
        assert page == newest[1:8]
        _, early = await get(port, "klines", symbol="ETHUSDT", interval="1m", startTime=0, limit=7)
        assert early == newest[:7]
        _, until = await get(port, "klines", symbol="ETHUSDT", interval="1m", endTime=newest[50][0], limit=3)
        assert until == newest[48:51]
        _, hours = await get(port, "klines", symbol="ETHUSDT", interval="1h")
        assert len(hours) == 4
        assert (await get(port, "klines", symbol="ETHUSDT", interval="1h", startTime=START_MS + 1))[1] == []


@pytest.mark.parametrize(
    ("name", "query", "code"),
    [
        ("klines", {"symbol": "NOPE", "interval": "1m"}, -1121),
        ("klines", {"symbol": "BTCUSDT", "interval": "1s"}, -1120),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 1501}, -1130),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "startTime": "x"}, -1130),
        ("klines", {"interval": "1m"}, -1102),
        ("aggTrades", {"symbol": "BTCUSDT", "limit": 1001}, -1130),
        ("aggTrades", {"symbol": "BTCUSDT", "startTime": START_MS - 49 * 3_600_000}, -4166),
        ("fundingRate", {"symbol": "NOPE"}, -1121),
    ],
)
async def test_wrong_requests_are_refused_as_the_exchange_does(name: str, query: dict[str, Any], code: int) -> None:
    async with running(HandClock()) as (_, port):
        status, body = await get(port, name, **query)
        assert (status, body["code"]) == (400, code)
        assert (await get(port, "order"))[0] == 404


async def test_premium_index_ticker_and_funding() -> None:
    hand = HandClock()
    async with running(hand) as (emulator, port):
        _, trades = await get(port, "aggTrades", symbol="BTCUSDT", limit=1)
        _, one = await get(port, "premiumIndex", symbol="BTCUSDT")
        assert (one["markPrice"], one["time"]) == (trades[0]["p"], START_MS)
        assert [row["symbol"] for row in (await get(port, "premiumIndex"))[1]] == ["BTCUSDT", "ETHUSDT"]
        assert (await get(port, "ticker/price", symbol="BTCUSDT"))[1]["price"] == trades[0]["p"]
        assert len((await get(port, "ticker/price"))[1]) == 2
        assert len((await get(port, "fundingRate", symbol="BTCUSDT"))[1]) == 1
        emulator.venue.clock.begin()
        hand.advance(86_400)
        rates = (await get(port, "fundingRate", symbol="BTCUSDT"))[1][1:]
        assert [r["fundingTime"] for r in rates] == [one["nextFundingTime"] + i * 28_800_000 for i in range(3)]
        assert rates[0]["fundingRate"] == one["lastFundingRate"]
        _, later = await get(port, "fundingRate", symbol="BTCUSDT", startTime=rates[1]["fundingTime"], limit=1)
        assert later == rates[1:2]
