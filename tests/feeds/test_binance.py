import gzip
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.events import Ack, Event, Kline, Malformed, MarketTrade, MarkPrice, Refusal, Subscriptions
from feeds.exchanges import CODECS
from feeds.exchanges.base import Codec, plain, scaled, signed
from feeds.exchanges.binance import BinanceCodec
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market, Origin
from tests.data import shared
from tests.feeds.exchange_contract import CodecContract

M1 = CandleSpec.parse("1m")


def market(base: str, *, price_decimals: int = 2, size_decimals: int = 3) -> Market:
    return Market(
        exchange="binance",
        symbol=f"{base}/USDT:USDT",
        native=f"{base}USDT",
        price_decimals=price_decimals,
        size_decimals=size_decimals,
    )


BTC = market("BTC")


def codec_of(*markets: Market, specs: tuple[str, ...] = ("1m",)) -> BinanceCodec:
    return BinanceCodec(markets, {m.symbol: [CandleSpec.parse(s) for s in specs] for m in markets})


def agg(**changes: Any) -> dict[str, Any]:
    row = {"e": "aggTrade", "E": 1791382992488, "a": 34, "s": "BTCUSDT", "p": "83091.70", "q": "0.022", "nq": "0.022"}
    return {**row, "f": 81, "l": 84, "T": 1791382992338, "m": False, "st": 1, **changes}


def mark(**changes: Any) -> dict[str, Any]:
    row = {"e": "markPriceUpdate", "E": 1791382993000, "s": "BTCUSDT", "p": "83084.30000000", "ap": "83084.3"}
    return {**row, "P": "83195.1", "i": "83123.65891304", "r": "-0.00000078", "T": 1791388800000, **changes}


def kline(**changes: Any) -> dict[str, Any]:
    bar = {"t": 1791382980000, "T": 1791383039999, "s": "BTCUSDT", "i": "1m", "f": 1, "L": 9, "o": "83084.90"}
    bar |= {"c": "83091.60", "h": "83091.70", "l": "83051.20", "v": "13.551", "n": 1027, "x": False, "q": "1"}
    return {"e": "kline", "E": 1791382992723, "s": "BTCUSDT", "k": {**bar, **changes}}


def wrapped(row: dict[str, Any]) -> str:
    suffix = {"aggTrade": "aggTrade", "kline": "kline_1m", "trade": "trade"}.get(row["e"], "markPrice@1s")
    return json.dumps({"stream": f"{row['s'].lower()}@{suffix}", "data": row})


def decode(row: object, codec: Codec | None = None) -> list[Event]:
    return (codec or codec_of(BTC)).decode(json.dumps(row), 7)


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events if isinstance(event, Malformed)]


class TestContract(CodecContract):
    def codec(self) -> Codec:
        return CODECS["binance"]([BTC, market("ETH")], {BTC.symbol: [M1]})

    def stranger(self) -> Codec:
        return codec_of(market("ETH"))

    def frames(self) -> list[str]:
        return [wrapped(row) for row in (agg(), mark(), kline())] + [json.dumps(agg())]


def test_agg_trade_is_exact() -> None:
    (event,) = decode(agg())
    assert isinstance(event, MarketTrade)
    trade = event.trade
    assert event.market == BTC
    assert (trade.id, trade.price, trade.size, trade.fills) == (34, 8_309_170, 22, 4)
    assert (trade.event_time_ns, trade.receive_time_ns) == (1791382992338 * NS_PER_MS, 7)
    assert trade.taker_is_buyer


def test_kline_is_the_exchanges_own_candle() -> None:
    (event,) = decode(kline(x=True))
    assert isinstance(event, Kline)
    assert event.candle == Candle(
        seq=1791383040000 // 60_000, open_time_ns=1791382980000 * NS_PER_MS, close_time_ns=1791383040000 * NS_PER_MS,
        open=83084.9, high=83091.7, low=83051.2, close=83091.6, volume=13.551, trades=1027, closed=True,
        origin=Origin.EXCHANGE,
    )  # fmt: skip
    assert (event.spec, event.event_time_ns) == (M1, 1791382992723 * NS_PER_MS)


def test_mark_price_and_contracts_without_funding() -> None:
    (event,) = decode(mark())
    assert event == MarkPrice(
        BTC, 1791382993000 * NS_PER_MS, 7, 83084.3, 83123.65891304, -7.8e-07, 1791388800000 * NS_PER_MS
    )
    assert decode(mark(r="", T=0, i="")) == [MarkPrice(BTC, 1791382993000 * NS_PER_MS, 7, 83084.3)]


def test_raw_trades_count_only_from_the_market() -> None:
    row = {"e": "trade", "E": 1, "T": 1723161256560, "s": "BTCUSDT", "t": 43, "p": "2681.62", "q": "1.000", "m": True}
    for good in (row, {**row, "X": "MARKET"}):
        (event,) = decode(good)
        assert isinstance(event, MarketTrade)
        assert (event.trade.id, event.trade.fills, event.trade.taker_is_buyer) == (43, 1, False)
    assert decode({**row, "X": "INSURANCE_FUND"}) == decode({**row, "X": "NA", "p": "0", "q": "0"}) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"p": "0"}, {"q": "0.000"}, {"p": "-1"}, {"p": "+1"}, {"p": "NaN"}, {"p": "inf"}, {"p": "1e5"}, {"p": ""},
        {"p": " 1"}, {"p": "1_0"}, {"p": "٣"}, {"p": "83091.701"}, {"q": "0.0221"}, {"T": 0}, {"T": -5},
        {"T": 1791382992338000}, {"a": -1}, {"a": 1 << 63}, {"f": 9, "l": 8}, {"f": 0, "l": 10**30},
    ],
)  # fmt: skip
def test_impossible_trades_are_malformed_values(changes: dict[str, Any]) -> None:
    assert kinds(decode(agg(**changes))) == kinds(codec_of(BTC).decode(wrapped(agg(**changes)), 7)) == ["value"]


@pytest.mark.parametrize("changes", [{"p": 83091.7}, {"a": "34"}, {"m": 0}, {"T": None}, {"T": True}, {"l": 84.5}])
def test_wrong_types_are_malformed(changes: dict[str, Any]) -> None:
    assert kinds(decode(agg(**changes))) == kinds(codec_of(BTC).decode(wrapped(agg(**changes)), 7)) == ["type"]


@pytest.mark.parametrize(
    "changes",
    [
        {"l": "83085"}, {"h": "83091.5"}, {"o": "0", "l": "0"}, {"v": "-1"}, {"c": "nan"}, {"n": -1},
        {"T": 1791383040000}, {"t": 1791382980001, "T": 1791383040000}, {"i": "1m", "T": 1791383279999},
    ],
)  # fmt: skip
def test_impossible_klines_are_malformed_values(changes: dict[str, Any]) -> None:
    assert kinds(decode(kline(**changes))) == ["value"]


def test_more_decimals_count_only_if_they_are_not_zero() -> None:
    (event,) = decode(agg(p="83091.70000000", q="22"))
    assert isinstance(event, MarketTrade)
    assert (event.trade.price, event.trade.size) == (8_309_170, 22_000)


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        ('{"result":null,"id":1}', Ack(1)),
        ('{ "result": null, "id": "x" }', Ack("x")),
        ('{"result":["btcusdt@aggTrade"],"id":3}', Subscriptions(3, ("btcusdt@aggTrade",))),
        ('{"result":[],"id":3}', Subscriptions(3, ())),
        ('{"error":{"code":2,"msg":"Invalid request"},"id":null}', Refusal(None, 2, "Invalid request")),
        ('{"error":{"code":-1121,"msg":"no"},"id":4}', Refusal(4, -1121, "no")),
    ],
)
def test_answers(frame: str, event: Event) -> None:
    assert codec_of(BTC).decode(frame, 7) == [event]


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        ("", "json"), ("Ping", "json"), ("[]", "type"), ("5", "type"), ("{}", "type"), ('{"id":1}', "type"),
        ('{"result":null,"id":null}', "type"), ('{"result":null}', "type"), ('{"result":true,"id":1}', "type"),
        ('{"result":null,"id":true}', "type"), ('{"stream":"btcusdt@aggTrade"}', "type"),
        ('{"stream":"btcusdt@aggTrade","data":null}', "type"),
        ('{"stream":"btcusdt@aggTrade","data":{"e":"x"}}', "type"),
    ],
)  # fmt: skip
def test_what_is_neither_push_nor_answer_is_malformed(frame: str, kind: str) -> None:
    assert kinds(codec_of(BTC).decode(frame, 7)) == [kind]


@pytest.mark.parametrize(
    "frame",
    [
        '{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","s":"BTCUSDT"}}',
        '{"stream":"!assetIndex@arr","data":[{"e":"assetIndexUpdate"}]}',
        '{"stream":["x"],"data":7}',
        '{"e":"24hrTicker","s":"BTCUSDT"}',
    ],
)
def test_other_streams_are_left_out(frame: str) -> None:
    assert codec_of(BTC).decode(frame, 7) == []


def test_klines_of_an_interval_not_asked_for_are_left_out() -> None:
    assert decode(kline(i="5m", T=1791383279999)) == []


def test_streams_follow_the_specs_that_binance_serves() -> None:
    specs = ("1s", "5s", "1m", "10m", "4h", "1d", "100t", "50v", "1000000$")
    assert codec_of(BTC, specs=specs).streams == (
        "btcusdt@aggTrade", "btcusdt@markPrice@1s", "btcusdt@kline_1m", "btcusdt@kline_4h", "btcusdt@kline_1d",
    )  # fmt: skip


def test_many_streams_are_asked_for_in_requests_of_two_hundred() -> None:
    codec = codec_of(*(market(f"C{n}") for n in range(150)))
    bodies = [json.loads(frame) for _, frame in codec.subscribe()]
    assert [len(body["params"]) for body in bodies] == [200, 200, 50]
    assert [name for body in bodies for name in body["params"]] == list(codec.streams)
    assert [body["id"] for body in bodies] == [number for number, _ in codec.subscribe()] == [1, 2, 3]
    assert (codec.confirm()[0], json.loads(codec.confirm()[1])) == (4, {"method": "LIST_SUBSCRIPTIONS", "id": 4})


def test_the_address_is_on_the_routed_path() -> None:
    assert codec_of(BTC).url() == "wss://fstream.binance.com/market/stream"


@given(st.integers(0, 10**15), st.integers(0, 8), st.integers(0, 8))
def test_scaled_reads_exactly(number: int, decimals: int, more: int) -> None:
    text = f"{Decimal(number).scaleb(-decimals):f}"
    assert scaled(text, decimals) == number
    assert scaled(text, decimals + more) == number * 10**more
    assert Decimal(plain(text)) == Decimal(float(text))
    assert signed("-" + text) == -plain(text)


# Recorded frames


def recorded(path: str, *, venue: str | None = None) -> list[str]:
    rows = [json.loads(line) for line in shared(path).read_text().splitlines()]
    return [r["raw"] for r in rows if venue in (None, r.get("venue")) and r.get("kind") != "rest"]


def capture(path: str, separator: str) -> list[bytes]:
    with gzip.open(shared(path)) as lines:
        return [line.split(separator.encode(), 1)[1] for line in lines if line[:1].isdigit()]


def test_frames_of_2026() -> None:
    codec = codec_of(BTC)
    events = [e for raw in recorded("live2026/frames.jsonl", venue="binance_um") for e in codec.decode(raw, 7)]
    assert [type(e) for e in events] == [MarketTrade, Kline, MarkPrice, MarketTrade, MarketTrade]
    trades = [e.trade for e in events if isinstance(e, MarketTrade)]
    assert [(t.id, t.fills) for t in trades] == [(3477868433, 2), (3478018549, 5), (3339472008, 5)]


def test_frames_of_other_clients_test_suites() -> None:
    codec = codec_of(market("BTC", price_decimals=8), specs=("1m", "1h", "8h"))
    jkorf = [codec.decode(raw, 7) for raw in recorded("jkorf/binance_um.jsonl")]
    assert {type(e) for events in jkorf for e in events} >= {MarketTrade, MarkPrice, Malformed, Ack}
    folder = shared("nautilus/binance_futures")
    found = {path.stem: codec.decode(path.read_bytes(), 7) for path in folder.glob("*.json")}
    assert {name: [type(e) for e in events] for name, events in found.items() if events} == {
        "agg_trade_stream": [MarketTrade],
        "trade_stream": [MarketTrade],
        "mark_price_stream": [MarkPrice],
        "kline_stream_closed": [Kline],
        "kline_stream_open": [Malformed],  # its low is above its open
    }


def test_a_capture_of_four_markets() -> None:
    names = ("SUSHI", "AKRO", "KEEP", "CTK")
    codec = codec_of(*(market(name, price_decimals=5, size_decimals=0) for name in names))
    events = [e for raw in capture("cryptofeed/BINANCE_FUTURES.ws.1.0.gz", ": ") for e in codec.decode(raw, 7)]
    trades = [e for e in events if isinstance(e, MarketTrade)]
    klines = [e.candle for e in events if isinstance(e, Kline)]
    assert (len(events), len(trades), len(klines)) == (158, 91, 67)
    closed = [c for c in klines if c.closed]
    assert [(c.open, c.high, c.low, c.close, c.volume, c.trades) for c in closed[:1]] == [
        (7.608, 7.618, 7.607, 7.617, 3005.0, 113)
    ]
    assert len(closed) == len(names)


def test_a_capture_of_raw_trades_agrees_with_plain_json() -> None:
    frames = capture("hftbacktest/usdm_ethusdt_20240808.gz", " ")
    codec = codec_of(market("ETH"))
    trades = [e.trade for raw in frames for e in codec.decode(raw, 7) if isinstance(e, MarketTrade)]
    rows = [json.loads(raw)["data"] for raw in frames if b'"e":"trade"' in raw]
    assert [t.id for t in trades] == list(range(rows[0]["t"], rows[0]["t"] + 14_076))
    assert [(t.price, t.size, t.event_time_ns) for t in trades] == [
        (int(Decimal(r["p"]) * 100), int(Decimal(r["q"]) * 1000), r["T"] * NS_PER_MS) for r in rows
    ]
