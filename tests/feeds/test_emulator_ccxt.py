"""A client written by others follows the emulator: ccxt.pro gets the trades and candles that are on the tape."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import ccxt.pro
import pytest

from feeds.emulator import Emulator, Tape, tape_from
from feeds.emulator.tape import MINUTE_MS, K, T

BEGIN_NS = 1_700_000_040_000_000_000
START_NS = BEGIN_NS + 240 * MINUTE_MS * 1_000_000
TIMEOUT_S = 60.0
SYMBOL = "ETH/USDT:USDT"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    tapes = {native: tape_from("synthetic", native, seed=11, begin_ns=BEGIN_NS) for native in ("BTCUSDT", "ETHUSDT")}
    emulator = Emulator(tapes, start_ns=START_NS, speed=60.0)
    yield emulator
    await emulator.stop()


@pytest.fixture
async def client(emulator: Emulator) -> AsyncIterator[Any]:
    port = await emulator.start()
    exchange = ccxt.pro.binanceusdm({"timeout_on_exit": 0})
    exchange.urls["api"]["fapiPublic"] = f"http://127.0.0.1:{port}/fapi/v1"
    exchange.urls["api"]["ws"]["linear"] = f"ws://127.0.0.1:{port}/ws"
    yield exchange
    await exchange.close()


async def watched_trades(client: Any, count: int, name: str) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    while len(seen) < count:
        seen += await client.watch_trades(SYMBOL, params={"name": name})
    return seen


async def watched_candles(client: Any, count: int) -> list[list[float]]:
    seen: dict[int, list[float]] = {}
    while len(seen) <= count:
        seen |= {candle[0]: candle for candle in await client.watch_ohlcv(SYMBOL, "1m")}
    return [seen[opened] for opened in sorted(seen)[:-1]]


def assert_trades_are_on_the_tape(trades: list[dict[str, Any]], tape: Tape) -> None:
    rows = tape.trades_from(int(trades[0]["id"]), trades[-1]["timestamp"], len(trades)).tolist()
    price, size = 10**tape.price_decimals, 10**tape.size_decimals
    got = [(int(t["id"]), t["timestamp"], t["price"], t["amount"], t["side"] == "sell") for t in trades]
    assert got == [(r[T.ID], r[T.TIME], r[T.PRICE] / price, r[T.SIZE] / size, bool(r[T.MAKER])) for r in rows]


@pytest.mark.parametrize("name", ["aggTrade", "trade"])
async def test_ccxt_pro_gets_the_tape(emulator: Emulator, client: Any, name: str) -> None:
    tape = emulator.venue.tapes["ETHUSDT"]
    async with asyncio.timeout(TIMEOUT_S):
        trades, candles = await asyncio.gather(watched_trades(client, 60, name), watched_candles(client, 2))
    assert_trades_are_on_the_tape(trades, tape)
    price, size = 10**tape.price_decimals, 10**tape.size_decimals
    now, first, last = emulator.now_ns() // 1_000_000, int(candles[0][0]), int(candles[-1][0])
    bars = tape.candles(MINUTE_MS, start_ms=first, end_ms=last + 1, now_ms=now)
    prices = (K.OPEN, K.HIGH, K.LOW, K.CLOSE)
    assert candles == [[bar[0], *(bar[c] / price for c in prices), bar[K.VOLUME] / size] for bar in bars]


async def test_ccxt_reads_markets_candles_trades_and_funding(emulator: Emulator, client: Any) -> None:
    assert set(await client.load_markets()) == {"BTC/USDT:USDT", SYMBOL}
    assert set(emulator.venue.requests) == {"exchangeInfo"}
    candles = await client.fetch_ohlcv(SYMBOL, "5m", limit=20)
    assert len(candles) == 20
    trades = await client.fetch_trades(SYMBOL, limit=50)
    assert_trades_are_on_the_tape(trades, emulator.venue.tapes["ETHUSDT"])
    funding = await client.fetch_funding_rate(SYMBOL)
    assert funding["markPrice"] == candles[-1][4]
    assert 0 < funding["fundingRate"] < 0.001
