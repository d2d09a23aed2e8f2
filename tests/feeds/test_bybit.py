import gzip
import json
from collections import Counter
from decimal import Decimal
from itertools import pairwise
from typing import Any

import ccxt.pro
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.candles import TimeCandles
from feeds.events import Ack, Event, Kline, Malformed, MarketTrade, MarkPrice, Refusal
from feeds.exchanges import CODECS
from feeds.exchanges.base import Codec
from feeds.exchanges.bybit import INTERVALS, BybitCodec, trade_id
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market, Origin, Trade
from tests.data import shared
from tests.feeds.exchange_contract import CodecContract

M1 = CandleSpec.parse("1m")
CAPTURES = ("live2026/frames.jsonl", "jkorf/bybit_linear.jsonl")


def market(symbol: str, native: str, *, price_decimals: int = 4, size_decimals: int = 3) -> Market:
    return Market(
        exchange="bybit",
        symbol=symbol,
        native=native,
        price_decimals=price_decimals,
        size_decimals=size_decimals,
    )


BTC = market("BTC/USDT:USDT", "BTCUSDT")
ETH = market("ETH/USDT:USDT", "ETHUSDT")
INVERSE = market("BTC/USD:BTC", "BTCUSD", size_decimals=0)


def codec_of(*markets: Market, specs: tuple[str, ...] = ("1m",)) -> BybitCodec:
    return BybitCodec(markets, {m.symbol: [CandleSpec.parse(s) for s in specs] for m in markets})


def row(**changes: Any) -> dict[str, Any]:
    of = {"T": 1791457528911, "s": "BTCUSDT", "S": "Buy", "v": "0.011", "p": "82642.90", "L": "PlusTick"}
    return {
        **of,
        "i": "5be1261b-d231-533b-89cd-0653c4f333be",
        "BT": False,
        "RPI": False,
        "seq": 822323446907,
        **changes,
    }


def push(topic: str, data: object, kind: str = "snapshot", ts: int = 1791457528912) -> str:
    return json.dumps({"topic": topic, "type": kind, "ts": ts, "data": data})


def trades(*rows: dict[str, Any]) -> str:
    return push("publicTrade.BTCUSDT", list(rows))


def bar(**changes: Any) -> str:
    of = {"start": 1790409720000, "end": 1790409779999, "interval": "1", "open": "84045", "close": "84017.8"}
    of |= {"high": "84045", "low": "84017.8", "volume": "7.316", "turnover": "614833.7084", "confirm": True}
    return push("kline.1.BTCUSDT", [{**of, "timestamp": 1790409768441, **changes}], ts=1790409780141)


def ticker(kind: str = "snapshot", at: str = "1786659827683", **data: str) -> str:
    return push("tickers.BTCUSDT", {"symbol": "BTCUSDT", **data}, kind, int(at))


FULL = {
    "markPrice": "63560.80", "indexPrice": "63585.51", "openInterest": "59972.256", "fundingRate": "-0.00005013",
    "nextFundingTime": "1786665600000",
}  # fmt: skip


def decode(frame: str, codec: Codec | None = None) -> list[Event]:
    return (codec or codec_of(BTC)).decode(frame, 7)


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events if isinstance(event, Malformed)]


def answer(**body: Any) -> str:
    return json.dumps({"success": True, "ret_msg": "", "conn_id": "c", "op": "subscribe", **body})


class TestContract(CodecContract):
    def codec(self) -> Codec:
        return CODECS["bybit"]([BTC, ETH], {BTC.symbol: [M1]})

    def stranger(self) -> Codec:
        return codec_of(ETH)

    def frames(self) -> list[str]:
        return [trades(row()), bar(), ticker(**FULL)]


# ---- trades


def test_a_trade_is_exact() -> None:
    (event,) = decode(trades(row()))
    identity = int("5be1261bd231533b89cd0653c4f333be", 16) % 2**63
    expected = Trade(identity, 826_429_000, 11, 1791457528911 * NS_PER_MS, 7, 1, taker_is_buyer=True)
    assert event == MarketTrade(BTC, expected)


def test_the_trades_of_a_frame_keep_their_order_and_share_a_sequence() -> None:
    rows = [row(i=f"{n:08x}-0000-5000-8000-{n:012x}", v=str(n), S=("Sell", "Buy")[n % 2]) for n in range(1, 1025)]
    events = decode(trades(*rows))
    got = [event.trade for event in events if isinstance(event, MarketTrade)]
    assert [trade.size for trade in got] == [n * 1000 for n in range(1, 1025)]
    assert [trade.taker_is_buyer for trade in got] == [n % 2 == 1 for n in range(1, 1025)]
    assert len({trade.id for trade in got}) == 1024


def test_block_trades_are_left_out_and_rpi_trades_count() -> None:
    other = "5be1261b-d231-533b-89cd-000000000000"
    (event,) = decode(trades(row(BT=True, p="99999"), row(RPI=True, i=other)))
    assert isinstance(event, MarketTrade)
    assert event.trade.id == trade_id(other)
    (older,) = decode(trades({key: value for key, value in row().items() if key not in ("RPI", "seq", "BT", "L")}))
    assert isinstance(older, MarketTrade)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"p": "0"}, "value"), ({"v": "0.000"}, "value"), ({"p": "-1"}, "value"), ({"p": "1e5"}, "value"),
        ({"v": "0.0111"}, "value"), ({"p": "82642.90001"}, "value"), ({"S": "buy"}, "value"), ({"T": 0}, "value"),
        ({"T": 1791457528911000}, "value"), ({"i": ""}, "value"), ({"i": "x" * 36}, "value"), ({"i": "-5"}, "value"),
        ({"s": "ETHUSDT"}, "symbol"), ({"p": 82642.9}, "type"), ({"T": "1791457528911"}, "type"), ({"BT": 0}, "type"),
    ],
)  # fmt: skip
def test_an_impossible_trade_is_malformed_and_takes_no_other_with_it(changes: dict[str, Any], kind: str) -> None:
    assert kinds(decode(trades(row(**changes)))) == [kind]
    before, after = row(i="00000000-0000-0000-0000-000000000001"), row(i="00000000-0000-0000-0000-000000000002")
    events = decode(trades(before, row(**changes), after))
    assert [event.trade.id for event in events if isinstance(event, MarketTrade)] == [1, 2]
    assert kinds(events) == [kind]


@given(st.uuids())
def test_ids_are_63_bits_of_the_uuid(of: Any) -> None:
    assert trade_id(str(of)) == trade_id(str(of).upper()) == of.int & (1 << 63) - 1


def test_ids_that_are_numbers_are_kept() -> None:
    assert trade_id("2100000000007764263") == 2100000000007764263
    with pytest.raises(ValueError, match="no id"):
        trade_id("9" * 19)


# ---- klines


def test_a_kline_is_the_exchanges_own_candle_and_closed_when_confirmed() -> None:
    (event,) = decode(bar())
    assert isinstance(event, Kline)
    assert event.candle == Candle(
        seq=1790409780000 // 60_000, open_time_ns=1790409720000 * NS_PER_MS, close_time_ns=1790409780000 * NS_PER_MS,
        open=84045.0, high=84045.0, low=84017.8, close=84017.8, volume=7.316, trades=0, closed=True,
        origin=Origin.EXCHANGE,
    )  # fmt: skip
    assert (event.spec, event.event_time_ns) == (M1, 1790409780141 * NS_PER_MS)
    (forming,) = decode(bar(confirm=False, end=1790409768441))
    assert isinstance(forming, Kline)
    assert not forming.candle.closed


@pytest.mark.parametrize(
    "changes",
    [
        {"low": "84018"}, {"high": "84044"}, {"open": "0", "low": "0"}, {"volume": "-1"}, {"close": "nan"},
        {"start": 1790409720001}, {"interval": "5"}, {"end": 1790409780000}, {"end": 1790409768441},
    ],
)  # fmt: skip
def test_impossible_klines_are_malformed_values(changes: dict[str, Any]) -> None:
    assert kinds(decode(bar(**changes))) == ["value"]


def test_every_interval_the_exchange_has() -> None:
    specs = ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "12h", "1d")
    assert len(INTERVALS) == len(specs)
    assert codec_of(BTC, specs=(*specs, "8h", "5s", "100t")).streams[2:] == tuple(
        f"kline.{name}.BTCUSDT" for name in ("1", "3", "5", "15", "30", "60", "120", "240", "360", "720", "D")
    )


# ---- tickers


def test_a_ticker_is_a_snapshot_and_then_what_has_changed() -> None:
    codec = codec_of(BTC)
    assert decode(ticker("delta", indexPrice="1"), codec) == []
    (first,) = decode(ticker(**FULL), codec)
    at_ns, due_ns = 1786659827683 * NS_PER_MS, 1786665600000 * NS_PER_MS
    assert first == MarkPrice(BTC, at_ns, 7, 63560.8, 63585.51, -5.013e-05, due_ns, 59972.256)
    (second,) = decode(ticker("delta", "1786659827983", indexPrice="63585.74"), codec)
    assert second == MarkPrice(BTC, 1786659827983 * NS_PER_MS, 7, 63560.8, 63585.74, -5.013e-05, due_ns, 59972.256)
    (third,) = decode(ticker("delta", "1786659828083", bid1Price="1"), codec)
    assert isinstance(third, MarkPrice)
    assert (third.mark_price, third.index_price) == (63560.8, 63585.74)
    (fourth,) = decode(ticker(markPrice="5"), codec)
    assert fourth == MarkPrice(BTC, at_ns, 7, 5.0)


def test_contracts_without_funding_say_so_with_empty_texts() -> None:
    (event,) = decode(ticker(markPrice="5", indexPrice="", fundingRate="", nextFundingTime="0", openInterest=""))
    assert event == MarkPrice(BTC, 1786659827683 * NS_PER_MS, 7, 5.0)


def test_a_change_that_cannot_be_leaves_what_is_known() -> None:
    codec = codec_of(BTC)
    decode(ticker(**FULL), codec)
    assert kinds(decode(ticker("delta", markPrice="x"), codec)) == ["value"]
    assert kinds(decode(push("tickers.BTCUSDT", {"symbol": "ETHUSDT", "markPrice": "1"}, "delta"), codec)) == ["symbol"]
    (event,) = decode(ticker("delta"), codec)
    assert isinstance(event, MarkPrice)
    assert event.mark_price == 63560.8


# ---- requests


def many(count: int) -> BybitCodec:
    return codec_of(*(market(f"C{n}/USDT:USDT", f"C{n}USDT") for n in range(count)))


def test_requests_are_acknowledged_by_their_id_or_in_turn() -> None:
    codec = many(100)
    assert [number for number, _ in codec.subscribe()] == [1, 2, 3]
    assert [len(json.loads(frame)["args"]) for _, frame in codec.subscribe()] == [100, 100, 100]
    assert [json.loads(frame)["req_id"] for _, frame in codec.subscribe()] == ["1", "2", "3"]
    without_id = json.dumps({"success": True, "ret_msg": "subscribe", "conn_id": "c", "op": "subscribe"})
    got = [decode(frame, codec) for frame in (answer(req_id="2"), answer(req_id=""), without_id, without_id)]
    assert got == [[Ack(2)], [Ack(1)], [Ack(3)], []]
    assert decode(answer(req_id="theirs"), codec) == [Ack("theirs")]


def test_a_refusal_names_the_request() -> None:
    message = "error:handler not found,topic:publicTrade.NOPE"
    refused = answer(success=False, ret_msg=message, req_id="1")
    assert decode(refused) == [Refusal(1, "subscribe", message)]
    assert decode(answer(success=False, ret_msg=message)) == [Refusal(1, "subscribe", message)]


def test_pongs_tell_nothing() -> None:
    assert decode(answer(op="ping", ret_msg="pong", req_id="")) == []
    assert decode('{"op":"pong","args":["1757405570352"],"conn_id":"c"}') == []
    assert json.loads(codec_of(BTC).ping()) == {"op": "ping"}


def test_addresses_loads_and_families() -> None:
    assert codec_of(BTC).url() == "wss://stream.bybit.com/v5/public/linear"
    assert codec_of(INVERSE).url("ws://h:1") == "ws://h:1/v5/public/inverse"
    assert codec_of(BTC).load == len('"publicTrade.BTCUSDT","tickers.BTCUSDT","kline.1.BTCUSDT",')
    families = {"ETH/USDC:USDC": "linear", "BTC/USD:BTC-261225": "inverse", "BTC/USDT:USDT-261225": "linear"}
    assert {symbol: BybitCodec.family(market(symbol, "X")) for symbol in families} == families


@pytest.mark.parametrize(
    ("symbol", "native"),
    [
        ("BTC/USDT:USDT", "BTCUSDT"), ("1000PEPE/USDT:USDT", "1000PEPEUSDT"), ("BTC/USDC:USDC", "BTCPERP"),
        ("BTC/USD:BTC", "BTCUSD"), ("BTC/USD:BTC-261225", "BTCUSDZ26"), ("ETH/USD:ETH-260327", "ETHUSDH26"),
        ("BTC/USDC:USDC-261225", "BTC-25DEC26"), ("BTC/USDT:USDT-260102", "BTCUSDT-2JAN26"),
    ],
)  # fmt: skip
def test_unified_symbols_have_native_names(symbol: str, native: str) -> None:
    assert BybitCodec.native_of(symbol) == native


@pytest.mark.parametrize("symbol", ["BTC/USDT", "BTCUSDT", "ETH/USD:BTC", "BTC/EUR:EUR", "BTC/USDT:USDT-261325"])
def test_other_symbols_have_none(symbol: str) -> None:
    with pytest.raises(ValueError, match="no linear or inverse contract"):
        BybitCodec.native_of(symbol)


# ---- recorded frames


def recorded() -> list[str]:
    """All pushes of the current protocol that were recorded from its linear and inverse sockets."""
    rows = [json.loads(line) for name in CAPTURES for line in shared(name).read_text().splitlines()]
    ours = [r["raw"] for r in rows if r.get("venue", "bybit").startswith("bybit") and r.get("dir") != "client->server"]
    files = [path.read_text() for path in sorted(shared("nautilus/bybit").glob("ws_*.json"))]
    return [frame for frame in [*ours, *files] if "topic" in json.loads(frame)]


def theirs(exchange: Any, frame: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Read a push by ccxt: trades and klines."""
    symbol = "BTC/USD:BTC" if frame["topic"].endswith("USD") else "BTC/USDT:USDT"
    of = exchange.safe_market_structure({"symbol": symbol, "inverse": False, "type": "swap", "contract": True})
    if frame["topic"].startswith("kline."):
        return [tuple(exchange.parse_ws_ohlcv(bar, of)) for bar in frame["data"]]
    parsed = [exchange.parse_ws_trade(trade, of) for trade in frame["data"]]
    return [(t["timestamp"], t["price"], t["amount"], t["side"], t["info"]["i"]) for t in parsed]


def ours(events: list[Event]) -> list[tuple[Any, ...]]:
    out: list[tuple[Any, ...]] = []
    for event in events:
        if isinstance(event, MarketTrade):
            trade, of = event.trade, event.market
            price, size = trade.price / 10**of.price_decimals, trade.size / 10**of.size_decimals
            out.append(
                (trade.event_time_ns // NS_PER_MS, price, size, "buy" if trade.taker_is_buyer else "sell", trade.id)
            )
        elif isinstance(event, Kline):
            c = event.candle
            out.append((c.open_time_ns // NS_PER_MS, c.open, c.high, c.low, c.close, c.volume))
    return out


def test_recorded_frames_are_what_ccxt_makes_of_them() -> None:
    codec, exchange, seen = codec_of(BTC, INVERSE, specs=("1m", "5m")), ccxt.pro.bybit(), Counter[str]()
    for raw in recorded():
        frame, events = json.loads(raw), codec.decode(raw.encode(), 7)
        topic = frame["topic"].partition(".")[0]
        if topic not in ("publicTrade", "kline"):
            continue
        seen[topic] += len(frame["data"])
        expected = [
            (*known[:4], trade_id(known[4])) if topic == "publicTrade" else known for known in theirs(exchange, frame)
        ]
        assert ours(events) == expected
    assert seen == {"publicTrade": 12, "kline": 2}


def test_recorded_tickers_and_answers() -> None:
    codec, marks, other = codec_of(BTC, INVERSE), [], Counter[str]()
    for raw in recorded():
        frame, events = json.loads(raw), codec.decode(raw, 7)
        if frame["topic"].startswith("tickers."):
            marks += [
                (e.event_time_ns // NS_PER_MS, e.mark_price, e.index_price) for e in events if isinstance(e, MarkPrice)
            ]
        elif not frame["topic"].startswith(("publicTrade.", "kline.1.")):
            other[frame["topic"]] += 1
            assert events == []
    assert marks == [
        (1786659827683, 63560.8, 63585.51),
        (1786659827983, 63560.8, 63585.74),
        (1673272861686, 17217.33, 17227.36),
        (1673272861686, 17217.33, 17227.36),
    ]
    assert set(other) == {"allLiquidation.ETHUSDT", "kline.5.BTCUSDT", "trade.linear.BTCUSDT"}
    live = [json.loads(line) for line in shared("live2026/frames.jsonl").read_text().splitlines()]
    answers = [decode(r["raw"]) for r in live if r["venue"].startswith("bybit") and r["kind"] == "ack"]
    assert answers == [[], [Ack(1)]]
    (failure,) = decode(shared("nautilus/bybit/ws_subscription_failure.json").read_text())
    assert failure == Refusal(1, "subscribe", "Invalid topic: invalid.topic.BTCUSDT")


def test_the_spot_socket_is_never_taken_for_a_contract() -> None:
    """Its tickers have no mark price, its templates no prices; a spot trade alone has a contract's shape."""
    rows = [json.loads(line) for line in shared("jkorf/bybit_spot.jsonl").read_text().splitlines()]
    codec = codec_of(BTC, specs=("1h", "1d"))
    events = [e for r in rows if r["dir"] != "client->server" for e in codec.decode(r["raw"], 7)]
    assert Counter(type(event).__name__ for event in events) == {"Ack": 6, "MarketTrade": 1}


def test_the_obsolete_protocol_is_left_out_or_refused() -> None:
    codec, kinds_seen, count = codec_of(BTC, INVERSE, market("BCH/USDT:USDT", "BCHUSDT")), Counter[str](), 0
    with gzip.open(shared("cryptofeed/BYBIT.ws.25.0.gz"), "rt") as lines:
        for line in lines:
            if line.startswith("wss://") or not line.strip():
                continue
            count += 1
            events = codec.decode(line.partition(": ")[2], 7)
            assert all(isinstance(event, Malformed) for event in events), line
            kinds_seen.update(event.kind for event in events if isinstance(event, Malformed))
    assert count == 3342
    assert set(kinds_seen) == {"type"}


# ---- candles


@pytest.mark.parametrize("name", ["ADAUSDT_1m_2025-05-30_2025-06-29", "BTCUSDT_5m_2025-09_2026-01"])
def test_recorded_candles_open_at_the_close_before_which_counts_for_their_range(name: str) -> None:
    table = pq.read_table(shared(f"ohlcv/bybit_linear/{name}.parquet"))
    o, h, l, c = (table[column].to_numpy() for column in ("open", "high", "low", "close"))
    assert np.array_equal(o[1:], c[:-1])
    assert np.all((l <= o) & (o <= h))
    assert len(o) > 30_000


def test_inverse_candles_of_the_documentation_do_so_too() -> None:
    """Of BTCUSD, 60 minutes each, newest first."""
    rows = [
        ("17071", "17073", "17027", "17055.5"),
        ("17071.5", "17071.5", "17061", "17071"),
        ("17086.5", "17088", "16978", "17071.5"),
    ]
    assert all(newer[0] == older[3] for newer, older in pairwise(rows))


moves = st.lists(st.tuples(st.integers(1, 50_000), st.integers(1, 400), st.integers(1, 9)), min_size=1, max_size=60)


@given(moves)
def test_our_candles_open_so_too(moves: list[tuple[int, int, int]]) -> None:
    traits = BybitCodec.traits
    builder = TimeCandles(
        M1,
        price_decimals=1,
        size_decimals=0,
        opens_at_previous_close=traits.opens_at_previous_close,
        open_in_range=traits.open_in_range,
    )
    builder.see(60_000 * NS_PER_MS)
    at_ms, found, fed = 60_000, [], []
    for wait_ms, price, size in moves:
        at_ms += wait_ms
        fed.append((at_ms, price, size))
        found += builder.add(Trade(0, price, size, at_ms * NS_PER_MS, 0, 1, taker_is_buyer=True))
    first = fed[0][0] // 60_000 + 2  # the first traded minute has no close before it
    assert [candle.seq for candle in found] == list(range(first, at_ms // 60_000 + 1))
    for candle in found:
        inside = [(p, s) for t, p, s in fed if t // 60_000 + 1 == candle.seq]
        before = [p for t, p, _ in fed if t // 60_000 + 1 < candle.seq][-1]
        prices = [before, *(p for p, _ in inside)]
        expected = [Decimal(p) / 10 for p in (before, max(prices), min(prices), prices[-1])]
        assert [candle.open, candle.high, candle.low, candle.close] == [float(p) for p in expected]
        assert candle.volume == sum(s for _, s in inside)
