import functools
import gzip
import json
from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.events import Ack, Event, Kline, Malformed, MarketTrade, MarkPrice, Refusal
from feeds.exchanges import CODECS
from feeds.exchanges.base import Codec
from feeds.exchanges.bitmex import BINS, BitmexCodec, trade_id
from feeds.history.bitmex import _market
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market, Origin, Trade
from tests.data import shared
from tests.feeds.exchange_contract import CodecContract

M1 = CandleSpec.parse("1m")
ZEROS = "00000000-0000-0000-0000-000000000000"


def market(symbol: str, native: str, *, price_decimals: int = 1, size_decimals: int = 0) -> Market:
    return Market(
        exchange="bitmex", symbol=symbol, native=native, price_decimals=price_decimals, size_decimals=size_decimals
    )


XBT = market("BTC/USD:BTC", "XBTUSD")
ETH = market("ETH/USD:BTC", "ETHUSD", price_decimals=2)


def codec_of(*markets: Market, specs: tuple[str, ...] = ("1m",)) -> BitmexCodec:
    return BitmexCodec(markets, {m.symbol: [CandleSpec.parse(s) for s in specs] for m in markets})


def begun(*markets: Market, specs: tuple[str, ...] = ("1m",)) -> BitmexCodec:
    """A codec whose tables have all begun, with nothing in them."""
    codec = codec_of(*markets, specs=specs)
    for name in codec.streams:
        assert codec.decode(partial(name), 0) == []
    return codec


def partial(topic: str, *rows: dict[str, Any], **more: Any) -> str:
    table, _, native = topic.partition(":")
    return push(table, *rows, action="partial", keys=[], filter={"pool": "Aggregated", "symbol": native}, **more)


def push(table: str, *rows: dict[str, Any], action: str = "insert", **more: Any) -> str:
    return json.dumps({"table": table, "action": action, **more, "data": rows})


def row(**changes: Any) -> dict[str, Any]:
    of = {"timestamp": "2025-02-07T10:43:59.245Z", "symbol": "XBTUSD", "side": "Sell", "size": 4800, "price": 97343.4}
    of |= {"tickDirection": "MinusTick", "trdMatchID": "00000000-006d-1000-0000-0012a5c8049e", "grossValue": 4930998}
    return {**of, "homeNotional": 0.0493, "foreignNotional": 4800.0, "trdType": "Regular", **changes}


def a_bin(**changes: Any) -> dict[str, Any]:
    """The captured one, whose open lies below its low."""
    of = {"timestamp": "2021-12-16T08:37:00.000Z", "symbol": "XBTUSD", "open": 48766.5, "high": 48777, "low": 48770}
    of |= {"close": 48770, "trades": 2, "volume": 200, "vwap": 48773.5881, "lastSize": 100, "turnover": 410059}
    return {**of, "homeNotional": 0.00410059, "foreignNotional": 200, **changes}


def told(**changes: Any) -> dict[str, Any]:
    of = {"symbol": "XBTUSD", "fundingTimestamp": "2024-11-25T04:00:00.000Z", "fundingRate": 0.00011}
    of |= {"openInterest": 411647400, "markPrice": 97849.76, "indicativeSettlePrice": 97843.77}
    return {**of, "timestamp": "2024-11-24T23:33:19.034Z", **changes}


def decode(frame: str, codec: Codec | None = None) -> list[Event]:
    return (codec or begun(XBT)).decode(frame, 7)


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events if isinstance(event, Malformed)]


def trades_of(events: list[Event]) -> list[Trade]:
    return [event.trade for event in events if isinstance(event, MarketTrade)]


class TestContract(CodecContract):
    def codec(self) -> Codec:
        assert CODECS["bitmex"] is BitmexCodec
        return begun(XBT, ETH)

    def stranger(self) -> Codec:
        return begun(market("SOL/USDT:USDT", "SOLUSDT"))

    def frames(self) -> list[str]:
        inserts = [push("trade", row()), push("tradeBin1m", a_bin()), push("instrument", told(), action="update")]
        return [*inserts, partial("trade:XBTUSD", row(), row(symbol="ETHUSD", price=2600.05))]


# ---- trades


def test_a_trade_is_exact() -> None:
    (event,) = decode(push("trade", row()))
    assert event == MarketTrade(XBT, Trade(0x12A5C8049E, 973434, 4800, 1738925039245 * NS_PER_MS, 7, 1, False))
    (finer,) = decode(push("trade", row(side="Buy")), begun(market("BTC/USD:BTC", "XBTUSD", price_decimals=12)))
    assert isinstance(finer, MarketTrade)
    assert (finer.trade.price, finer.trade.taker_is_buyer) == (97343_400_000_000_000, True)


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("97343.4", "97343.4"), ("97270.0", "97270"), ("32175", "32175"), ("0.0000016425", "0.0000016425"),
        ("1.6425e-7", "0.00000016425"), ("1e-8", "0.00000001"), ("12345678.123456789012", "12345678.123456789012"),
    ],
)  # fmt: skip
def test_prices_are_read_from_their_text(text: str, price: str) -> None:
    codec = begun(market("BTC/USD:BTC", "XBTUSD", price_decimals=12))
    (trade,) = trades_of(decode(push("trade", row(price=1)).replace('"price": 1', f'"price": {text}'), codec))
    assert Decimal(trade.price).scaleb(-12) == Decimal(price)


@given(st.integers(1, 10**15), st.integers(0, 8))
def test_any_price_survives(scaled: int, decimals: int) -> None:
    text = format(Decimal(scaled).scaleb(-decimals), "f")
    codec = begun(market("BTC/USD:BTC", "XBTUSD", price_decimals=decimals))
    (trade,) = trades_of(decode(push("trade", row(price=1)).replace('"price": 1', f'"price": {text}'), codec))
    assert trade.price == scaled


def test_the_rows_of_one_order_share_a_time_and_keep_their_order() -> None:
    rows = [row(size=n, trdMatchID=f"{n:08x}-0000-5000-8000-{n:012x}") for n in range(1, 40)]
    later = row(size=99, timestamp="2025-02-07T10:43:59.300Z")
    got = trades_of(decode(push("trade", later, *rows)))
    assert [trade.size for trade in got] == [*range(1, 40), 99]
    assert len({trade.id for trade in got}) == 40
    assert len({trade.event_time_ns for trade in got[:-1]}) == 1


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"price": 0}, "value"), ({"price": -1}, "value"), ({"size": 0}, "value"), ({"size": -5}, "value"),
        ({"price": 97343.45}, "value"), ({"price": "97343.4"}, "value"), ({"price": 1e30}, "value"),
        ({"price": None}, "value"), ({"side": "buy"}, "value"), ({"side": ""}, "value"), ({"trdMatchID": "5"}, "value"),
        ({"trdMatchID": "x" * 36}, "value"), ({"timestamp": "1969-01-01T00:00:00.000Z"}, "value"),
        ({"timestamp": "2200-01-01T00:00:00.000Z"}, "value"), ({"timestamp": "2025-02-07T10:43:59"}, "type"),
        ({"timestamp": 1738925039245}, "type"), ({"size": 1.5}, "type"), ({"size": None}, "type"),
    ],
)  # fmt: skip
def test_an_impossible_trade_is_malformed_and_takes_no_other_with_it(changes: dict[str, Any], kind: str) -> None:
    assert kinds(decode(push("trade", row(**changes)))) == [kind]
    before, after = row(trdMatchID=ZEROS[:-1] + "1"), row(trdMatchID=ZEROS[:-1] + "2")
    events = decode(push("trade", before, row(**changes), after))
    assert [trade.id for trade in trades_of(events)] == [1, 2]
    assert kinds(events) == [kind]


@given(st.uuids())
def test_ids_are_63_bits_of_the_guid(of: Any) -> None:
    assert trade_id(str(of)) == trade_id(str(of).upper()) == of.int & (1 << 63) - 1


def test_a_trade_without_an_id_counts_unless_it_may_be_a_repetition() -> None:
    nameless = [row(trdMatchID=ZEROS), {key: value for key, value in row().items() if key != "trdMatchID"}]
    for one in (*nameless, row(trdMatchID=None)):
        assert [trade.id for trade in trades_of(decode(push("trade", one)))] == [0]
        assert decode(partial("trade:XBTUSD", one)) == []
    assert len(trades_of(decode(partial("trade:XBTUSD", nameless[0], row())))) == 1


# ---- tables begin with their partial


def test_before_its_partial_a_table_tells_nothing() -> None:
    codec = codec_of(XBT, ETH)
    frames = [push("trade", row()), push("tradeBin1m", a_bin()), push("instrument", told(), action="update")]
    assert [codec.decode(frame, 7) for frame in frames] == [[], [], []]
    codec.decode(partial("trade:ETHUSD"), 7)
    assert codec.decode(frames[0], 7) == []
    assert len(codec.decode(partial("trade:XBTUSD", row()), 7)) == 1
    assert [len(codec.decode(frame, 7)) for frame in frames] == [1, 0, 0]
    codec.decode(push("tradeBin1m", action="partial"), 7)  # without a filter: of all symbols
    codec.decode(partial("instrument:XBTUSD"), 7)
    assert [len(codec.decode(frame, 7)) for frame in frames] == [1, 1, 1]


def test_a_welcome_begins_anew() -> None:
    codec = begun(XBT)
    assert codec.decode('{"info":"Welcome to the BitMEX Realtime API.","limit":{"remaining":39}}', 7) == []
    assert codec.decode(push("trade", row()), 7) == []


def test_other_tables_and_actions_are_left_out() -> None:
    for frame in (push("quote", {"symbol": "XBTUSD"}), push("funding", {}), push("trade", row(), action="delete")):
        assert decode(frame) == []
    assert decode(partial("orderBookL2:XBTUSD", {"price": 1})) == []


# ---- bins


def test_a_bin_is_a_closed_candle_of_the_time_before_its_timestamp() -> None:
    (event,) = decode(push("tradeBin1m", a_bin()))
    assert isinstance(event, Kline)
    end_ms = 1639643820000
    assert event.candle == Candle(
        seq=end_ms // 60_000, open_time_ns=(end_ms - 60_000) * NS_PER_MS, close_time_ns=end_ms * NS_PER_MS,
        open=48766.5, high=48777.0, low=48770.0, close=48770.0, volume=200.0, trades=2, closed=True,
        origin=Origin.EXCHANGE,
    )  # fmt: skip
    assert (event.market, event.spec, event.event_time_ns) == (XBT, M1, end_ms * NS_PER_MS)


def test_an_empty_minute_has_a_bin_too() -> None:
    flat = dict.fromkeys(("open", "high", "low", "close"), 968.29)
    (event,) = decode(push("tradeBin1m", a_bin(**flat, volume=0, trades=0, vwap=None, lastSize=None, turnover=0)))
    assert isinstance(event, Kline)
    assert (event.candle.open, event.candle.high, event.candle.volume) == (968.29, 968.29, 0.0)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"close": 48769}, "value"), ({"high": 48769}, "value"), ({"open": 0}, "value"), ({"low": 0}, "value"),
        ({"volume": -1}, "value"), ({"trades": -1}, "value"), ({"timestamp": "2021-12-16T08:37:00.001Z"}, "value"),
        ({"high": None}, "type"), ({"open": "48766.5"}, "type"), ({"volume": None}, "type"),
    ],
)  # fmt: skip
def test_impossible_bins_are_malformed(changes: dict[str, Any], kind: str) -> None:
    assert kinds(decode(push("tradeBin1m", a_bin(**changes)))) == [kind]


def test_every_interval_the_exchange_has() -> None:
    specs = ("1m", "5m", "1h", "1d")
    assert len(BINS) == len(specs)
    codec = codec_of(XBT, specs=(*specs, "3m", "15m", "5s", "100t"))
    assert codec.streams[2:] == tuple(f"tradeBin{text}:XBTUSD" for text in specs)
    hourly = begun(XBT, specs=("1m", "1h"))
    (event,) = hourly.decode(push("tradeBin1h", a_bin(timestamp="2021-12-16T08:00:00.000Z")), 7)
    assert isinstance(event, Kline)
    assert event.candle.close_time_ns - event.candle.open_time_ns == 3_600_000 * NS_PER_MS
    assert hourly.decode(push("tradeBin5m", a_bin(timestamp="2021-12-16T08:00:00.000Z")), 7) == []


# ---- instruments


def test_an_instrument_is_told_once_and_then_by_what_has_changed() -> None:
    codec = codec_of(XBT)
    at_ns, due_ns = 1732491199034 * NS_PER_MS, 1732507200000 * NS_PER_MS
    (first,) = decode(partial("instrument:XBTUSD", told()), codec)
    assert first == MarkPrice(XBT, at_ns, 7, 97849.76, 97843.77, 0.00011, due_ns, 411647400.0)
    change = {"symbol": "XBTUSD", "indicativeSettlePrice": 75847.62, "timestamp": "2024-11-24T23:33:20.000Z"}
    (second,) = decode(push("instrument", change, action="update"), codec)
    assert second == MarkPrice(XBT, 1732491200000 * NS_PER_MS, 7, 97849.76, 75847.62, 0.00011, due_ns, 411647400.0)
    timeless = {"symbol": "XBTUSD", "markPrice": 5.5}
    assert decode(push("instrument", timeless, action="update"), codec) == []
    (third,) = decode(push("instrument", change, action="update"), codec)
    assert isinstance(third, MarkPrice)
    assert third.mark_price == 5.5
    unfunded = told(fundingRate=None, fundingTimestamp=None, indicativeSettlePrice=None, openInterest=None)
    assert decode(partial("instrument:XBTUSD", unfunded), codec) == [MarkPrice(XBT, at_ns, 7, 97849.76)]
    assert decode(partial("instrument:XBTUSD", told(markPrice=None)), codec) == []


def test_a_change_that_cannot_be_leaves_what_is_known() -> None:
    codec = codec_of(XBT)
    decode(partial("instrument:XBTUSD", told()), codec)
    for bad, kind in (({"markPrice": -1}, "value"), ({"markPrice": "x"}, "type"), ({"timestamp": "x"}, "type")):
        assert kinds(decode(push("instrument", told(indicativeSettlePrice=1.0) | bad, action="update"), codec)) == [
            kind
        ]
    (event,) = decode(
        push("instrument", {"symbol": "XBTUSD", "timestamp": told()["timestamp"]}, action="update"), codec
    )
    assert isinstance(event, MarkPrice)
    assert (event.mark_price, event.index_price) == (97849.76, 97843.77)


# ---- requests


def ack(topic: str, **more: Any) -> str:
    return json.dumps({"success": True, "subscribe": topic, **more, "request": {"op": "subscribe", "args": [topic]}})


def test_a_request_is_complete_once_every_topic_is_acknowledged_and_has_begun() -> None:
    codec = codec_of(XBT)
    assert codec.streams == ("trade:XBTUSD", "instrument:XBTUSD", "tradeBin1m:XBTUSD")
    acks = [decode(ack(name, pool="Aggregated"), codec) for name in codec.streams]
    assert acks == [[], [], []]
    assert decode(partial("instrument:XBTUSD", told()), codec)[1:] == []
    assert decode(partial("tradeBin1m:XBTUSD"), codec) == []
    last = decode(partial("trade:XBTUSD", row()), codec)
    assert [type(event) for event in last] == [MarketTrade, Ack]
    assert last[-1] == Ack(1)
    assert decode(ack("trade:XBTUSD"), codec) == []
    assert len(decode(partial("trade:XBTUSD", row()), codec)) == 1


def test_requests_are_counted_apart_and_acknowledgements_may_come_last() -> None:
    codec = codec_of(*(market(f"C{n}/USDT:USDT", f"C{n}USDT") for n in range(10)))
    requests = codec.subscribe()
    assert [(n, len(json.loads(frame)["args"])) for n, frame in requests] == [(1, 20), (2, 10)]
    done: list[Event] = []
    for _, frame in reversed(requests):
        names = json.loads(frame)["args"]
        done += [event for name in names for event in decode(partial(name), codec)]
        done += [event for name in names for event in decode(ack(name), codec)]
    assert done == [Ack(2), Ack(1)]


def test_a_refusal_names_the_request_and_its_reason() -> None:
    request = {"op": "subscribe", "args": ["trade:XBTUSD", "nonsense:XBTUSD"]}
    said = {"status": 400, "error": "Unknown table: nonsense", "meta": {}, "request": request}
    assert decode(json.dumps(said)) == [Refusal(1, 400, "Unknown table: nonsense")]
    assert decode('{"status":429,"error":"Rate limit exceeded","meta":{"retryAfter":1}}') == [
        Refusal(None, 429, "Rate limit exceeded")
    ]
    assert decode(
        '{"success":false,"subscribe":"trade:XBTUSD","request":{"op":"subscribe","args":"trade:XBTUSD"}}'
    ) == [Refusal(1, 0, "refused")]


def test_the_pong_is_bare() -> None:
    codec = codec_of(XBT)
    assert codec.ping() == "ping"
    assert codec.decode("pong", 7) == codec.decode(b"pong", 7) == []
    assert codec.ping_every_s == 5.0


def test_all_markets_share_one_address() -> None:
    assert codec_of(XBT).url() == "wss://ws.bitmex.com/realtime"
    assert BitmexCodec.family(XBT) == BitmexCodec.family(ETH) == ""
    assert codec_of(XBT, ETH, specs=("1m", "1h")).load == 8


@pytest.mark.parametrize(
    ("symbol", "native"),
    [
        ("BTC/USD:BTC", "XBTUSD"), ("BTC/EUR:BTC", "XBTEUR"), ("ETH/USD:BTC", "ETHUSD"), ("SOL/USDT:USDT", "SOLUSDT"),
        ("BTC/USDT:USDT", "XBTUSDT"), ("UNI/USDT:BTC", "UNIUSDT"), ("ETH/USD:ETH", "ETHUSD_ETH"),
        ("BTC/USD:BTC-210924", "XBTU21"), ("BTC/EUR:BTC-210924", "XBTEURU21"), ("ETH/USD:BTC-210924", "ETHUSDU21"),
        ("XRP/BTC:BTC-210924", "XRPU21"), ("ETH/USDT:USDT-241227", "ETHUSDTZ24"),
    ],
)  # fmt: skip
def test_unified_symbols_have_native_names(symbol: str, native: str) -> None:
    assert BitmexCodec.native_of(symbol) == native


@pytest.mark.parametrize("symbol", ["BTC/USD", "XBTUSD", "ETH/USD:SOL", "BTC/USD:BTC-211324", "BTC/USD:BTC-24-C"])
def test_other_symbols_have_none(symbol: str) -> None:
    with pytest.raises(ValueError, match="no contract of bitmex"):
        BitmexCodec.native_of(symbol)


# ---- recorded frames


def instruments() -> list[dict[str, Any]]:
    with gzip.open(shared("cryptofeed/BITMEX.0.gz"), "rt") as lines:
        head = next(line for line in lines if "instrument/active" in line)
    found: list[dict[str, Any]] = json.loads(head.partition(": ")[2], parse_float=str)
    return found


@functools.cache
def captured() -> list[str]:
    with gzip.open(shared("cryptofeed/BITMEX.ws.1.0.gz"), "rt") as lines:
        return [line.partition(": ")[2].rstrip("\n") for line in lines if line[:1].isdigit()]


def test_the_capture_of_ten_contracts() -> None:
    by_native = {row["symbol"]: row for row in instruments()}
    pushed = [frame for frame in captured() if frame.startswith('{"table":"trade"')]
    rows = [row for frame in pushed for row in json.loads(frame, parse_float=Decimal)["data"]]
    markets = {name: _market(by_native[name]) for name in sorted({row["symbol"] for row in rows})}
    codec, seen, frames = codec_of(*markets.values()), Counter[str](), Counter[str]()
    got: list[MarketTrade] = []
    for frame in captured():
        events = codec.decode(frame, 7)
        seen.update(type(event).__name__ for event in events)
        got += [event for event in events if isinstance(event, MarketTrade)]
        frames[frame.partition(",")[0]] += 1
    tables = {'{"table":"orderBookL2"': 1979, '{"table":"quote"': 93, '{"table":"trade"': 17}
    welcome = '{"info":"Welcome to the BitMEX Realtime API."'
    assert frames == {welcome: 1, '{"success":true': 30, **tables}
    assert seen == {"MarketTrade": len(got)}, "tables never asked for are left out, acknowledgements are of others' too"
    assert len(got) == len(rows) == 27
    for event, raw in zip(got, rows, strict=True):
        of, trade, native = event.market, event.trade, raw["symbol"]
        assert of.native == native
        assert Decimal(trade.price).scaleb(-of.price_decimals) == raw["price"]
        assert (trade.size, trade.taker_is_buyer) == (raw["size"], raw["side"] == "Buy")
        assert trade.id == int(raw["trdMatchID"].replace("-", ""), 16) % 2**63
        at = np.datetime64(raw["timestamp"].removesuffix("Z"), "ns").astype(int)
        assert trade.event_time_ns == at
        # The exchange's own product, rounded per contract and as a whole: we understand price and size as it does.
        each, is_inverse = Decimal(by_native[native]["multiplier"]), by_native[native]["isInverse"]
        value = abs(each / raw["price"] if is_inverse else each * raw["price"])
        assert abs(value - Decimal(raw["grossValue"]) / trade.size) <= Decimal("0.006") + Decimal("0.5") / trade.size


def test_single_frames_of_2024_to_2026() -> None:
    codec = begun(XBT, market("DOT/USDT:USDT", "DOTUSDT"), market("ETH/USDT:USDT", "ETH_USDT"), specs=("1m", "5m"))
    folder = shared("nautilus/bitmex")

    def one(name: str, table: str, action: str = "insert") -> list[Event]:
        return codec.decode(f'{{"table":"{table}","action":"{action}","data":[{(folder / name).read_text()}]}}', 7)

    (trade,) = one("ws_trade.json", "trade")
    assert trade == MarketTrade(XBT, Trade(0x0E8737D536, 985709, 100, 1732436138704 * NS_PER_MS, 7, 1, False))
    (kline,) = one("ws_trade_bin_1m.json", "tradeBin1m")
    assert isinstance(kline, Kline)
    candle, open_ns = kline.candle, 1732392360000 * NS_PER_MS
    assert (candle.open_time_ns, candle.trades, candle.volume) == (open_ns, 20, 84000.0)
    assert (candle.open, candle.high, candle.low, candle.close) == (97550.0, 97584.4, 97550.0, 97570.1)
    assert one("ws_instrument_index_update.json", "instrument", "update") == []
    (mark,) = one("ws_instrument.json", "instrument", "update")
    assert mark == MarkPrice(XBT, 1732536000000 * NS_PER_MS, 7, 95125.7, index_price=95126.0, open_interest=123456789.0)
    (index,) = one("ws_instrument_index_update.json", "instrument", "update")
    assert isinstance(index, MarkPrice)
    assert (index.event_time_ns, index.index_price) == (1779879600500 * NS_PER_MS, 75847.62)
    (dot,) = one("ws_instrument_mark_update.json", "instrument", "update")
    assert isinstance(dot, MarkPrice)
    assert (dot.market.native, dot.mark_price) == ("DOTUSDT", 1.2669)
    for name, table in (("ws_funding_rate", "funding"), ("ws_liquidation", "liquidation"), ("ws_quote", "quote")):
        assert one(f"{name}.json", table) == []
    relabelled = [json.loads(line) for line in shared("jkorf/bitmex.jsonl").read_text().splitlines()]
    seen = Counter[str]()
    for line in relabelled:
        if line["dir"].startswith("server"):
            seen.update(type(event).__name__ for event in codec.decode(line["raw"], 7))
    assert seen == {"MarketTrade": 1, "Kline": 1}, (
        "those acknowledged and the hours and days, which have no figures, were not asked for"
    )


def test_live_frames_of_2026() -> None:
    lines = [json.loads(line) for line in shared("live2026/frames.jsonl").read_text().splitlines()]
    frames = {line["channel"]: line["raw"] for line in lines if line["venue"] == "bitmex"}
    assert len(frames) == 6
    codec = codec_of(XBT)
    got = {channel: codec.decode(raw, 7) for channel, raw in frames.items()}
    (trade,) = got.pop("trade partial (types elided by source)")
    assert trade == MarketTrade(XBT, Trade(0x367D215623, 774545, 8000, 1788334477309 * NS_PER_MS, 7, 1, True))
    rest = got.pop("REST trade/bucketed 1h reverse=true; row 3 has open < low")
    assert kinds(rest) == ["type"]
    assert list(got.values()) == [[]] * 4
    codec.decode(partial("tradeBin1m:XBTUSD"), 7)
    (kline,) = codec.decode(frames["tradeBin1m insert, open < low"], 7)
    assert isinstance(kline, Kline)
    assert kline.candle.open < kline.candle.low


@pytest.mark.parametrize("name", ["binance_um", "bitget", "bitget_uta_v3", "bybit_linear", "bybit_spot", "bingx"])
def test_other_exchanges_frames_are_refused(name: str) -> None:
    lines = [json.loads(line) for line in shared(f"jkorf/{name}.jsonl").read_text().splitlines()]
    codec = begun(XBT, ETH)
    events = [e for line in lines if line["dir"] != "client->server" for e in codec.decode(line["raw"], 7)]
    assert events
    assert all(isinstance(event, Malformed | Refusal) for event in events)


def test_recorded_candles_survive_their_frames() -> None:
    """Real minutes of 2017, re-encoded as bins; a tenth of them open outside their range."""
    table = pq.read_table(shared("ohlcv/bitmex/XBTUSD_1m_2017-01_2021-09.parquet")).slice(5000, 3000)
    codec, outside = begun(market("BTC/USD:BTC", "XBTUSD", price_decimals=3)), 0
    before = None
    for real in table.to_pylist():
        end_ms = round(real["open_time"].timestamp() * 1000) + 60_000
        stamp = np.datetime64(end_ms, "ms").item().isoformat(timespec="milliseconds") + "Z"
        names = ("open", "high", "low", "close", "volume", "trades")
        frame = push("tradeBin1m", a_bin(timestamp=stamp, **{name: real[name] for name in names}))
        (event,) = codec.decode(frame, 7)
        assert isinstance(event, Kline)
        candle = event.candle
        assert [getattr(candle, name) for name in names] == [real[name] for name in names]
        assert (candle.close_time_ns, before) == (end_ms * NS_PER_MS, before if before is None else candle.open)
        before = candle.close
        outside += not candle.low <= candle.open <= candle.high
    assert outside > 100
