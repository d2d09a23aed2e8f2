import gzip
import json
from collections import Counter
from itertools import pairwise
from typing import Any

import ccxt.pro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.candles import TimeCandles
from feeds.events import Ack, Event, Kline, Malformed, MarketTrade, MarkPrice, Refusal
from feeds.exchanges import CODECS
from feeds.exchanges.base import Codec, scaled
from feeds.exchanges.bitget import BitgetCodec, product_of
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market, Origin, Trade
from tests.data import shared
from tests.feeds.exchange_contract import CodecContract

M1 = CandleSpec.parse("1m")
SPECS = ("1m", "3m", "5m", "15m", "30m", "1h", "4h", "6h", "12h", "1d")
CAPTURE = "cryptofeed/BITGET.ws.2.0.gz"


def market(symbol: str, *, price_decimals: int = 1, size_decimals: int = 4) -> Market:
    return Market(
        exchange="bitget",
        symbol=symbol,
        native=BitgetCodec.native_of(symbol),
        price_decimals=price_decimals,
        size_decimals=size_decimals,
    )


BTC = market("BTC/USDT:USDT")
ETH = market("ETH/USDT:USDT", price_decimals=2)


def codec_of(*markets: Market, specs: tuple[str, ...] = ("1m",)) -> BitgetCodec:
    return BitgetCodec(markets, {m.symbol: [CandleSpec.parse(s) for s in specs] for m in markets})


def arg(channel: str, **changes: str) -> dict[str, str]:
    return {"instType": "USDT-FUTURES", "channel": channel, "instId": "BTCUSDT", **changes}


def push(channel: str, data: object, action: str = "update", ts: int | None = 1788335044369) -> str:
    body = {"action": action, "arg": arg(channel), "data": data}
    return json.dumps(body if ts is None else body | {"ts": ts})


def row(**changes: Any) -> dict[str, Any]:
    of = {"ts": "1788335044368", "price": "77600.5", "size": "0.0106", "side": "buy", "tradeId": "1478949857936523268"}
    return {**of, **changes}


def trades(*rows: dict[str, Any]) -> str:
    return push("trade", list(rows))


BAR = ["1786650720000", "63415.3", "63415.4", "63415.2", "63415.2", "0.2824", "17908.4799", "17908.4799"]
TICKER = {
    "instId": "BTCUSDT", "lastPr": "87673.6", "markPrice": "87673.7", "indexPrice": "87714.0732915359034044",
    "fundingRate": "-0.000055", "nextFundingTime": "1766678400000", "holdingAmount": "28135.5456",
    "symbolType": "1", "deliveryPrice": "0", "ts": "1766674540816",
}  # fmt: skip


def bars(*rows: list[str], action: str = "update", ts: int | None = 1786650728706, channel: str = "candle1m") -> str:
    return push(channel, list(rows), action, ts)


def ticker(**changes: Any) -> str:
    return push("ticker", [{**TICKER, **changes}], "snapshot", 1766674540817)


def decode(frame: str, codec: Codec | None = None) -> list[Event]:
    return (codec or codec_of(BTC)).decode(frame, 7)


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events if isinstance(event, Malformed)]


def traded(events: list[Event]) -> list[Trade]:
    return [event.trade for event in events if isinstance(event, MarketTrade)]


class TestContract(CodecContract):
    def codec(self) -> Codec:
        return CODECS["bitget"]([BTC, ETH], {BTC.symbol: [M1]})

    def stranger(self) -> Codec:
        return codec_of(ETH)

    def frames(self) -> list[str]:
        return [trades(row()), bars(BAR), ticker()]

    def written(self, name: str) -> str:
        product, channel, native = name.split("/")
        return f'{{"instType":"{product}","channel":"{channel}","instId":"{native}"}}'


# ---- trades


def test_a_trade_is_exact() -> None:
    (event,) = decode(trades(row()))
    at_ns = 1788335044368 * NS_PER_MS
    assert event == MarketTrade(BTC, Trade(1478949857936523268, 776_005, 106, at_ns, 7, 1, taker_is_buyer=True))
    assert not traded(decode(trades(row(side="sell"))))[0].taker_is_buyer


@given(st.permutations(range(6)))
def test_trades_come_out_oldest_first_whichever_way_round_a_frame_has_them(order: list[int]) -> None:
    rows = [row(ts=str(1788335044368 + n // 3), tradeId=str(1478949857936523264 + n), size=f"{n + 1}") for n in order]
    assert [trade.size for trade in traded(decode(trades(*rows)))] == [(n + 1) * 10_000 for n in range(6)]


def test_one_bad_row_does_not_take_the_others_with_it() -> None:
    good, bad, worse = row(ts="1788335044370"), row(price="77600.55"), row(size=1)
    events = decode(trades(good, bad, worse, row()))
    assert [trade.event_time_ns // NS_PER_MS for trade in traded(events)] == [1788335044368, 1788335044370]
    assert kinds(events) == ["value", "type"]


@pytest.mark.parametrize(
    "changes",
    [
        {"price": "0"}, {"size": "0.0000"}, {"price": "-1"}, {"price": "1e5"}, {"price": ""}, {"size": "0.00001"},
        {"ts": "0"}, {"ts": "1788335044368000"}, {"ts": "-1"}, {"ts": ""}, {"tradeId": ""}, {"tradeId": "٣"},
        {"tradeId": "-5"}, {"tradeId": "a"},
    ],
)  # fmt: skip
def test_impossible_trades_are_malformed_values(changes: dict[str, str]) -> None:
    assert kinds(decode(trades(row(**changes)))) == ["value"]


@pytest.mark.parametrize("changes", [{"price": 77600.5}, {"ts": 1788335044368}, {"side": "none"}, {"tradeId": None}])
def test_wrong_types_are_malformed(changes: dict[str, Any]) -> None:
    assert kinds(decode(trades(row(**changes)))) == ["type"]


def test_an_id_longer_than_63_bits_keeps_its_lower_ones() -> None:
    (trade,) = traded(decode(trades(row(tradeId=str((1 << 70) + 5)))))
    assert trade.id == 5


# ---- candles and tickers


def test_a_kline_is_the_forming_candle() -> None:
    (event,) = decode(bars(BAR))
    open_ns = 1786650720000 * NS_PER_MS
    assert event == Kline(
        BTC, M1, 1786650728706 * NS_PER_MS, 7,
        Candle(
            seq=1786650780000 // 60_000, open_time_ns=open_ns, close_time_ns=open_ns + M1.interval_ns, open=63415.3,
            high=63415.4, low=63415.2, close=63415.2, volume=0.2824, trades=0, closed=False, origin=Origin.EXCHANGE,
        ),
    )  # fmt: skip


def test_of_a_snapshot_only_the_newest_candle_counts() -> None:
    rows = [[str(1786650720000 - n * 60_000), *BAR[1:]] for n in range(500)]
    for order in (rows, rows[::-1]):
        (event,) = decode(bars(*order, action="snapshot"))
        assert isinstance(event, Kline)
        assert event.candle.open_time_ns == 1786650720000 * NS_PER_MS
    assert decode(bars(action="snapshot")) == []


def test_a_candle_without_a_time_of_its_message_is_evidence_of_its_beginning() -> None:
    (event,) = decode(bars(BAR, ts=None))
    assert isinstance(event, Kline)
    assert event.event_time_ns == event.candle.open_time_ns


@pytest.mark.parametrize(
    ("column", "text"), [(0, "1786650720001"), (1, "0"), (2, "63415.1"), (3, "63415.3"), (4, "nan"), (5, "-1")]
)
def test_impossible_candles_are_malformed_values(column: int, text: str) -> None:
    assert kinds(decode(bars([*BAR[:column], text, *BAR[column + 1 :]]))) == ["value"]


def test_rows_with_too_few_columns_are_malformed() -> None:
    assert kinds(decode(bars(BAR[:5]))) == ["type"]


def test_days_begin_at_midnight_of_utc_or_are_refused() -> None:
    codec = codec_of(BTC, specs=("1d",))
    day = 1786579200000
    assert [type(e) for e in decode(bars([str(day), *BAR[1:]], channel="candle1Dutc"), codec)] == [Kline]
    assert kinds(decode(bars([str(day - 8 * 3_600_000), *BAR[1:]], channel="candle1Dutc"), codec)) == ["value"]
    assert decode(bars([str(day), *BAR[1:]], channel="candle1D"), codec) == []


def test_a_month_is_no_minute() -> None:
    assert decode(bars(BAR, channel="candle1M")) == []


def test_a_ticker_tells_mark_index_funding_and_open_interest() -> None:
    assert decode(ticker()) == [
        MarkPrice(
            BTC, 1766674540816 * NS_PER_MS, 7, 87673.7, 87714.0732915359034044, -0.000055, 1766678400000 * NS_PER_MS,
            28135.5456,
        )
    ]  # fmt: skip
    bare = dict.fromkeys(("indexPrice", "fundingRate", "holdingAmount")) | {"ts": "", "nextFundingTime": "0"}
    assert decode(ticker(**bare)) == [MarkPrice(BTC, 1766674540817 * NS_PER_MS, 7, 87673.7)]
    assert kinds(decode(ticker(markPrice=None))) == ["type"]
    assert kinds(decode(ticker(markPrice="0"))) == ["value"]


# ---- requests and answers


def ack(channel: str = "trade", **changes: str) -> str:
    return json.dumps({"event": "subscribe", "arg": arg(channel, **changes)})


def test_a_request_is_acknowledged_once_all_its_channels_are() -> None:
    codec = codec_of(BTC)
    assert decode(ack(), codec) == []
    assert decode(ack(), codec) == []
    assert decode(ack("candle1M"), codec) == []
    assert decode(ack("ticker", instType="SPOT"), codec) == []
    assert decode(ack("ticker"), codec) == []
    assert decode(ack("candle1m"), codec) == [Ack(1)]
    assert decode(ack("candle1m"), codec) == []


def test_many_channels_are_asked_for_in_requests_of_4096_bytes_and_acknowledged_one_by_one() -> None:
    codec = codec_of(*(market(f"C{n}/USDT:USDT") for n in range(90)))
    requests = codec.subscribe()
    assert [number for number, _ in requests] == [1, 2, 3, 4, 5]
    assert max(len(frame.encode()) for _, frame in requests) <= 4096
    asked = [json.loads(frame) for _, frame in requests]
    assert {body["op"] for body in asked} == {"subscribe"}
    assert ["/".join(one.values()) for body in asked for one in body["args"]] == list(codec.streams)
    for number, body in reversed(list(enumerate(asked, start=1))):
        answers = [codec.decode(json.dumps({"event": "subscribe", "arg": one}), 7) for one in body["args"]]
        assert answers == [[]] * (len(answers) - 1) + [[Ack(number)]]


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        ({"event": "error", "arg": arg("trade"), "code": 30001, "msg": "m", "op": "subscribe"}, Refusal(1, 30001, "m")),
        ({"event": "error", "arg": arg("x"), "code": 30016, "msg": "m"}, Refusal(None, 30016, "m")),
        ({"event": "error", "code": 30002, "msg": "m"}, Refusal(None, 30002, "m")),
        ({"event": "error", "code": "0", "msg": ""}, Refusal(None, "0", "")),
    ],
)
def test_errors_are_refusals_with_or_without_an_argument(frame: dict[str, Any], event: Event) -> None:
    assert decode(json.dumps(frame)) == [event]


def test_a_pong_is_bare_text() -> None:
    codec = codec_of(BTC)
    assert codec.ping() == "ping"
    assert codec.decode("pong", 7) == codec.decode(b"pong", 7) == []
    assert kinds(codec.decode("ping", 7)) == kinds(codec.decode("pong ", 7)) == ["json"]


@pytest.mark.parametrize(
    "frame",
    [
        "[]", "5", "{}", '{"event":"login","code":"0","msg":""}', '{"event":"subscribe"}', '{"event":5}',
        '{"action":"insert","arg":{"instType":"USDT-FUTURES","channel":"trade","instId":"BTCUSDT"},"data":[]}',
        '{"event":"subscribe","arg":{"instType":"usdt-futures","topic":"ticker","symbol":"BTCUSDT"}}',
    ],
)  # fmt: skip
def test_what_is_neither_push_nor_answer_is_malformed(frame: str) -> None:
    assert kinds(decode(frame)) == ["type"]


def test_the_address_is_v2s() -> None:
    assert codec_of(BTC).url() == "wss://ws.bitget.com/v2/ws/public"


def test_streams_follow_the_specs_that_bitget_serves_by_the_utc_day() -> None:
    codec = codec_of(BTC, specs=("5s", "2h", "8h", "100t", *SPECS))
    names = ("trade", "ticker", *(f"candle{name}" for name in ("1m", "5m", "15m", "30m", "1H", "4H")))
    names += ("candle6Hutc", "candle12Hutc", "candle1Dutc")
    assert codec.streams == tuple(f"USDT-FUTURES/{name}/BTCUSDT" for name in names)
    assert [s for s in ("5s", "2h", "8h", "100t", *SPECS) if codec.has_kline(CandleSpec.parse(s))] == list(SPECS)


@pytest.mark.parametrize(
    ("symbol", "native", "product"),
    [
        ("BTC/USDT:USDT", "BTCUSDT", "USDT-FUTURES"), ("1000BONK/USDT:USDT", "1000BONKUSDT", "USDT-FUTURES"),
        ("BTC/USDC:USDC", "BTCPERP", "USDC-FUTURES"), ("ETH/USD:ETH", "ETHUSD", "COIN-FUTURES"),
    ],
)  # fmt: skip
def test_names_and_products(symbol: str, native: str, product: str) -> None:
    assert BitgetCodec.native_of(symbol) == native
    assert product_of(symbol) == product
    assert market(symbol).native in codec_of(market(symbol)).subscribe()[0][1]
    assert codec_of(market(symbol)).streams[0].startswith(product)


@pytest.mark.parametrize("symbol", ["BTC/USDT", "BTCUSDT", "BTC/USD:ETH", "BTC/EUR:EUR", "BTC/USD:BTC-261225"])
def test_other_symbols_have_none(symbol: str) -> None:
    with pytest.raises(ValueError, match="no perpetual"):
        BitgetCodec.native_of(symbol)


# ---- recorded frames


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shared(path).read_text().splitlines()]


def recorded() -> list[str]:
    """Everything that v2's servers were heard to say, spot trades as those of a contract: the shape is the same."""
    live = [r["raw"] for r in lines("live2026/frames.jsonl") if r["venue"].startswith("bitget") and r["kind"] != "rest"]
    old = [r["raw"] for r in lines("jkorf/bitget.jsonl") if r["dir"] != "client->server"]
    frames = [raw for raw in live + old if "topic" not in raw]
    return [raw.replace('"instType":"SPOT"', '"instType":"USDT-FUTURES"') for raw in frames]


def theirs(exchange: Any, frame: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Read a push by ccxt: trades and candles."""
    of = exchange.safe_market_structure({"symbol": "BTC/USDT:USDT", "inverse": False, "swap": True, "contract": True})
    if frame["arg"]["channel"].startswith("candle"):
        return [tuple(exchange.parse_ws_ohlcv(bar, of)) for bar in frame["data"]]
    parsed = [exchange.parse_ws_trade(trade, of) for trade in reversed(frame["data"])]
    return [(t["timestamp"], t["price"], t["amount"], t["side"], int(t["id"])) for t in parsed]


def ours(events: list[Event]) -> list[tuple[Any, ...]]:
    out: list[tuple[Any, ...]] = []
    for event in events:
        if isinstance(event, MarketTrade):
            trade, of = event.trade, event.market
            price, size = trade.price / 10**of.price_decimals, trade.size / 10**of.size_decimals
            side = "buy" if trade.taker_is_buyer else "sell"
            out.append((trade.event_time_ns // NS_PER_MS, price, size, side, trade.id))
        elif isinstance(event, Kline):
            c = event.candle
            out.append((c.open_time_ns // NS_PER_MS, c.open, c.high, c.low, c.close, c.volume))
    return out


def test_recorded_frames_are_what_ccxt_makes_of_them() -> None:
    btc = market("BTC/USDT:USDT", price_decimals=2, size_decimals=6)
    codec, exchange, seen = codec_of(btc, ETH, specs=("1m", "1h")), ccxt.pro.bitget(), Counter[str]()
    for raw in recorded():
        frame, events = json.loads(raw), codec.decode(raw.encode(), 7)
        channel = frame["arg"]["channel"]
        if "action" in frame and channel in ("trade", "candle1m"):
            seen[channel] += len(frame["data"])
            assert ours(events) == theirs(exchange, frame)
    assert seen == {"trade": 6, "candle1m": 1}


def test_recorded_tickers_answers_and_templates() -> None:
    codec, seen = codec_of(BTC, ETH, specs=("1m", "1h", "12h")), Counter[str]()
    for raw in recorded():
        frame = json.loads(raw)
        events = codec.decode(raw, 7)
        name = f"{frame.get('action', frame.get('event'))} {frame['arg']['channel']}"
        seen.update(f"{name}: {type(event).__name__}" for event in events)
        if not events:
            seen[f"{name}: nothing"] += 1
        if frame["arg"]["channel"] == "ticker" and "action" in frame:
            (mark,) = events
            assert mark == MarkPrice(
                BTC, 1695715383021 * NS_PER_MS, 7, 27000.0, 25702.4, 0.00001, 1695722400000 * NS_PER_MS, 929.502
            )
    assert seen == {
        "update candle1m: Kline": 1, "subscribe candle1m: nothing": 1,
        "error books: Refusal": 1, "subscribe candle1H: nothing": 1, "subscribe candle1D: nothing": 1,
        "snapshot candle1H: Malformed": 1, "snapshot candle1D: nothing": 1, "subscribe candle12H: nothing": 1,
        "snapshot candle12H: nothing": 1, "subscribe books5: nothing": 1, "snapshot books5: nothing": 1,
        "subscribe ticker: nothing": 1, "snapshot ticker: MarkPrice": 1, "subscribe trade: nothing": 1,
        "snapshot trade: MarketTrade": 2, "update trade: Malformed": 4,
    }  # fmt: skip


def test_ids_of_recorded_trades_hold_their_time() -> None:
    spot, old = market("BTC/USDT:USDT", price_decimals=2, size_decimals=6), "1111111111"
    events = [e for raw in recorded() for e in codec_of(spot).decode(raw, 7) if old not in raw]
    epochs = {t.event_time_ns // NS_PER_MS - (t.id >> 22) for t in traded(events)}
    assert epochs == {1435725920677}


def test_frames_of_v3_and_spot_are_refused_or_left_out() -> None:
    alien = ("bitget_usdt_futures_v3", "bitget_spot_v2")
    frames = [r["raw"] for r in lines("live2026/frames.jsonl") if r["venue"] in alien]
    frames += [r["raw"] for r in lines("jkorf/bitget_uta_v3.jsonl") if r["dir"] != "client->server"]
    seen = Counter(kind for raw in frames for kind in kinds(decode(raw)) or ["nothing"])
    assert all(isinstance(event, Malformed) for raw in frames for event in decode(raw))
    assert seen == {"type": 13, "nothing": 2}


def capture() -> list[str]:
    with gzip.open(shared(CAPTURE), "rt") as rows:
        return [line.partition(": ")[2] for line in rows if line[:1].isdigit()]


def test_a_capture_of_v1_is_left_out_whatever_product_it_names() -> None:
    markets = [market(f"{base}/USDT:USDT", price_decimals=4, size_decimals=4) for base in ("DASH", "UNI")]
    frames, seen = capture(), Counter[str]()
    for raw in frames:
        codec = codec_of(*markets)
        assert codec.decode(raw, 7) == []
        frame = json.loads(raw)
        relabelled = codec.decode(raw.replace('"instType":"mc"', '"instType":"USDT-FUTURES"'), 7)
        if "action" in frame and frame["arg"]["channel"] in ("trade", "ticker"):
            assert {type(event) for event in relabelled} == {Malformed}
            seen.update(kinds(relabelled))
    assert len(frames) == 473
    assert set(seen) == {"type", "value"}  # tickers have no time that v2 knows


# ---- candles


def recorded_candles() -> list[list[list[str]]]:
    found = [json.loads(raw) for raw in capture() if '"candle1m"' in raw and '"snapshot"' in raw]
    hours = next(r for r in lines("live2026/frames.jsonl") if r["channel"].startswith("REST candles"))
    return [*(frame["data"] for frame in found), json.loads(hours["raw"])["data"]]


def test_recorded_candles_open_at_the_close_before_which_counts_for_their_range() -> None:
    series = recorded_candles()
    assert [len(rows) for rows in series] == [1000, 1000, 5]
    for rows in series:
        assert all(late[1] == early[4] for early, late in pairwise(rows))
        assert all(float(low) <= float(opened) <= float(high) for _, opened, high, low, *_ in rows)


def test_a_recorded_minute_is_the_fold_of_its_trades_and_of_the_close_before() -> None:
    """DASH on 2022-04-07 at 00:08 UTC: its candle opened at 113.37 and had that low, long before a trade was as low."""
    updates = [frame for raw in capture() if "DASHUSDT" in raw and (frame := json.loads(raw)).get("action") == "update"]
    told = [frame["data"][0] for frame in updates if frame["arg"]["channel"] == "candle1m"]
    opened_ms = int(told[-1][0])
    before = [bar for bar in told if int(bar[0]) < opened_ms][-1]
    builder = TimeCandles(M1, price_decimals=2, size_decimals=2, opens_at_previous_close=True, open_in_range=True)
    builder.see(0)
    builder.close_until(opened_ms * NS_PER_MS)
    builder.carry(float(before[4]))
    built = {}
    for frame in updates:
        for time, price, size, side in frame["data"] if frame["arg"]["channel"] == "trade" else ():
            at_ns = int(time) * NS_PER_MS
            builder.add(Trade(0, scaled(price, 2), scaled(size, 2), at_ns, at_ns, 1, side == "buy"))
            candle = builder.forming()
            assert candle is not None
            built[candle.volume] = [candle.open, candle.high, candle.low, candle.close, candle.volume]
    rows = [[float(text) for text in bar[1:]] for bar in told if int(bar[0]) == opened_ms]
    assert rows[0] == [113.37, 113.49, 113.37, 113.49, 0.43]
    assert [built[bar[4]] for bar in rows] == rows
    assert len(rows) == 9
