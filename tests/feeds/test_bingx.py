"""The codec of BingX: frames captured from it, read as ccxt reads them, and everything that only looks like them."""

import functools
import gzip
import json
import tracemalloc
import zlib
from typing import Any

import ccxt
import ccxt.pro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.events import Ack, Event, Kline, Malformed, MarketTrade, MarkPrice, Refusal, Reply
from feeds.exchanges import CODECS
from feeds.exchanges.base import MAX_FRAME_BYTES, Codec
from feeds.exchanges.bingx import INTERVALS, RENAMED, BingxCodec, oldest_first
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market, Origin
from feeds.traits import Identity
from tests.data import shared
from tests.feeds.exchange_contract import CodecContract

M1 = CandleSpec.parse("1m")


def market(base: str, *, price_decimals: int = 2, size_decimals: int = 4) -> Market:
    return Market(
        exchange="bingx",
        symbol=f"{base}/USDT:USDT",
        native=f"{base}-USDT",
        price_decimals=price_decimals,
        size_decimals=size_decimals,
    )


BTC, ETH = market("BTC"), market("ETH")


def codec_of(*markets: Market, specs: tuple[str, ...] = ("1m",)) -> BingxCodec:
    return BingxCodec(markets, {m.symbol: [CandleSpec.parse(s) for s in specs] for m in markets})


def push(variant: str, data: object, **more: object) -> dict[str, Any]:
    return {"code": 0, "dataType": f"BTC-USDT@{variant}", **more, "data": data}


def row(**changes: Any) -> dict[str, Any]:
    return {"q": "0.0009", "p": "76398.3", "T": 1788348255196, "m": False, "s": "BTC-USDT", **changes}


def bar(**changes: Any) -> dict[str, Any]:
    prices = {"c": "110267.6", "o": "110298.6", "h": "110298.6", "l": "110265.1", "v": "2.0741"}
    return {**prices, "T": 1761327420000, **changes}


def trades(*rows: dict[str, Any]) -> dict[str, Any]:
    return push("trade", list(rows))


def kline(**changes: Any) -> dict[str, Any]:
    return push("kline_1m", [bar(**changes)], s="BTC-USDT")


def documented(**changes: Any) -> dict[str, Any]:
    body = {"t": 1761327420000, "T": 1761327479999, **{k: v for k, v in bar().items() if k != "T"}, **changes}
    return push("kline_1m", {"s": "BTC-USDT", "K": body})


def mark(**changes: Any) -> dict[str, Any]:
    return push("markPrice", {"e": "markPriceUpdate", "E": 1790127588636, "s": "BTC-USDT", "p": "86379.1", **changes})


def decode(frame: object, codec: Codec | None = None) -> list[Event]:
    return (codec or codec_of(BTC)).decode(json.dumps(frame), 7)


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events if isinstance(event, Malformed)]


def zipped(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


class TestContract(CodecContract):
    def codec(self) -> Codec:
        return CODECS["bingx"]([BTC, ETH], {BTC.symbol: [M1]})

    def stranger(self) -> Codec:
        return codec_of(ETH)

    def frames(self) -> list[str]:
        burst = trades(row(), row(T=1788348255190, m=True))
        return [json.dumps(frame) for frame in (burst, mark(), kline(), documented())]


# ---- what was captured


@functools.cache
def captured() -> list[tuple[str, str]]:
    """Read all captured frames of BingX: what they are, and their text."""
    live = [json.loads(line) for line in shared("live2026/frames.jsonl").read_text().splitlines()]
    found = [(f"{one['venue']} {one['channel']}", one["raw"]) for one in live if one["venue"].startswith("bingx")]
    rows = [json.loads(line) for line in shared("jkorf/bingx.jsonl").read_text().splitlines()]
    return found + [(f"{one['case']} {one['dir']}", one["raw"]) for one in rows]


def frames_of(word: str) -> list[dict[str, Any]]:
    """Read the captured pushes of one kind of topic of the swap exchange."""
    bodies = [json.loads(raw) for name, raw in captured() if "spot" not in name and raw.startswith('{"code"')]
    return [body for body in bodies if word in body.get("dataType", "")]


def offline(client: Any) -> Any:
    """Tell ccxt of the markets in the captures."""
    client.set_markets(
        [
            client.safe_market_structure(
                {
                    "id": f"{base}-USDT", "symbol": f"{base}/USDT:USDT", "base": base, "quote": "USDT",
                    "settle": "USDT", "type": "swap", "spot": False, "swap": True, "contract": True, "linear": True,
                    "inverse": False, "contractSize": 1.0,
                }
            )
            for base in ("BTC", "ETH")
        ]
    )  # fmt: skip
    return client


def test_captured_trades_are_what_ccxt_makes_of_them() -> None:
    client, codec, seen = offline(ccxt.bingx()), codec_of(BTC, ETH), 0
    for body in frames_of("@trade"):
        events = codec.decode(zipped(json.dumps(body)), 7)
        theirs = client.parse_trades(body["data"], client.safe_market(body["data"][0]["s"], None, None, "swap"))
        ours = []
        for event in events:
            assert isinstance(event, MarketTrade)
            trade, unit, lot = event.trade, 10**event.market.price_decimals, 10**event.market.size_decimals
            side = "buy" if trade.taker_is_buyer else "sell"
            ours.append(
                (event.market.symbol, trade.event_time_ns // NS_PER_MS, trade.price / unit, trade.size / lot, side)
            )
            assert (trade.id, trade.fills, trade.receive_time_ns) == (0, 1, 7)
        figures = ("symbol", "timestamp", "price", "amount", "side")
        assert sorted(ours) == sorted(tuple(one[name] for name in figures) for one in theirs)
        assert [one[1] for one in ours] == [one["timestamp"] for one in theirs], "in order of time"
        assert {one["id"] for one in theirs} == {None}
        seen += len(ours)
    assert seen == 24


def test_the_captured_burst_is_turned_round_and_keeps_rows_that_are_alike() -> None:
    (body,) = [body for body in frames_of("@trade") if len(body["data"]) > 1]
    events = [event for event in codec_of(ETH).decode(json.dumps(body), 7) if isinstance(event, MarketTrade)]
    texts = [(one["T"] * NS_PER_MS, round(float(one["p"]) * 100), not one["m"]) for one in reversed(body["data"])]
    assert [(e.trade.event_time_ns, e.trade.price, e.trade.taker_is_buyer) for e in events] == texts
    assert len(events) == 23
    assert len({event.trade for event in events}) < 13


def test_captured_klines_are_what_ccxt_makes_of_them() -> None:
    client, codec, seen = ccxt.pro.bingx(), codec_of(BTC, ETH), 0
    for body in frames_of("@kline_1m"):
        (event,) = codec.decode(zipped(json.dumps(body)), 7)
        assert isinstance(event, Kline)
        candle = event.candle
        figures = [candle.open, candle.high, candle.low, candle.close, candle.volume]
        (kline,) = body["data"]
        assert [candle.open_time_ns // NS_PER_MS, *figures] == client.parse_ws_ohlcv(kline)
        assert event.event_time_ns == candle.open_time_ns, "the frame has no other time"
        assert not candle.closed
        seen += 1
    assert seen == 2


def test_captured_mark_prices_answers_and_heartbeats() -> None:
    marks = [event for body in frames_of("@markPrice") for event in decode(body, codec_of(BTC, ETH))]
    assert marks == [
        MarkPrice(BTC, 1790127588636 * NS_PER_MS, 7, 86379.1),
        MarkPrice(ETH, 1714650884021 * NS_PER_MS, 7, 2999.63),
    ]
    codec = codec_of(BTC, ETH)
    others = [event for name, raw in captured() if "ack" in name or "error" in name for event in codec.decode(raw, 7)]
    assert sum(isinstance(event, Ack) for event in others) == 10
    assert [event for event in others if not isinstance(event, Ack)] == [
        Refusal("0fffced2-fc90-486b-8dd2-addf04efae0d", 80015, "dataType not support")
    ]
    assert codec.decode(zipped("Ping"), 7) == codec.decode("Ping", 7) == [Reply("Pong")]


def test_every_captured_frame_is_understood_left_out_or_refused() -> None:
    codec = codec_of(BTC, ETH, specs=("1m", "1h", "1d"))
    told = [(name, event) for name, raw in captured() for event in codec.decode(zipped(raw), 7)]
    assert len(captured()) == 36
    assert sorted(name for name, event in told if isinstance(event, Malformed)) == sorted(
        [
            "bingx_swap REST v3 klines newest-first, objects",
            "bingx_spot trade is an OBJECT on spot (negative test for swap parser)",
            *(name for name, _ in captured() if name.endswith("client->server")),
            # Hourly and daily klines that are copies of the minute's: no hour opens at that time.
            *["Concurrent server->client(push)"] * 2,
        ]
    )
    assert sum(isinstance(event, MarketTrade) for _, event in told) == 24
    assert sum(isinstance(event, Kline) for _, event in told) == 2
    assert sum(isinstance(event, MarkPrice) for _, event in told) == 2


ALIENS = ("binance_um", "bitget", "bitget_uta_v3", "bitmex", "bybit_linear", "bybit_spot")


def test_frames_of_other_exchanges_give_no_market_event() -> None:
    texts = [json.loads(line)["raw"] for name in ALIENS for line in shared(f"jkorf/{name}.jsonl").open()]
    live = [json.loads(line) for line in shared("live2026/frames.jsonl").open()]
    texts += [one["raw"] for one in live if not one["venue"].startswith("bingx")]
    codec = codec_of(BTC, ETH)
    for text in texts:
        assert all(isinstance(event, Malformed | Ack | Refusal) for event in codec.decode(text, 7)), text
    assert len(texts) > 150


# ---- exactness


def test_a_trade_is_exact() -> None:
    (event,) = decode(trades(row(p="76398.30", q="0.0009", m=True)))
    assert isinstance(event, MarketTrade)
    trade = event.trade
    assert (trade.price, trade.size, trade.taker_is_buyer) == (7_639_830, 9, False)
    assert trade.event_time_ns == 1788348255196 * NS_PER_MS


@pytest.mark.parametrize("frame", [kline(), documented()])
def test_both_shapes_of_a_kline_are_the_exchanges_own_candle(frame: dict[str, Any]) -> None:
    (event,) = decode(frame)
    assert isinstance(event, Kline)
    assert event.candle == Candle(
        seq=1761327480000 // 60_000, open_time_ns=1761327420000 * NS_PER_MS, close_time_ns=1761327480000 * NS_PER_MS,
        open=110298.6, high=110298.6, low=110265.1, close=110267.6, volume=2.0741, trades=0, closed=False,
        origin=Origin.EXCHANGE,
    )  # fmt: skip


def test_a_documented_kline_may_have_a_time_of_its_own() -> None:
    frame = documented()
    frame["data"]["E"] = 1761327433210
    (event,) = decode(frame)
    assert isinstance(event, Kline)
    assert event.event_time_ns == 1761327433210 * NS_PER_MS


def test_several_klines_in_one_frame_all_count() -> None:
    events = decode(push("kline_1m", [bar(), bar(T=1761327480000)]))
    assert [e.candle.open_time_ns // NS_PER_MS for e in events if isinstance(e, Kline)] == [
        1761327420000,
        1761327480000,
    ]
    assert decode(push("kline_1m", [])) == decode(trades()) == []


ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 10**9), st.integers(1, 10**7), st.booleans()), min_size=1, max_size=30
)


@given(steps=ROWS, rising=st.booleans())
def test_trades_come_out_in_order_of_time_none_lost(
    steps: list[tuple[int, int, int, bool]],
    rising: bool,
) -> None:
    time_ms, made = 1788348255196, []
    for step, price, size, maker in steps:
        time_ms += step
        made.append((time_ms, price, size, maker))
    rows = [row(T=t, p=f"{p / 100:.2f}", q=f"{q / 10_000:.4f}", m=m) for t, p, q, m in made]
    still = made[0][0] == made[-1][0]
    events = decode(trades(*(rows if rising and not still else reversed(rows))))
    out = [e.trade for e in events if isinstance(e, MarketTrade)]
    assert [(t.event_time_ns // NS_PER_MS, t.price, t.size, not t.taker_is_buyer) for t in out] == made


def test_order_among_trades_of_one_time() -> None:
    assert oldest_first("cba", lambda _: 0) == ["a", "b", "c"]
    assert oldest_first(["b2", "b1", "a2", "a1"], lambda name: ord(name[0])) == ["a1", "a2", "b1", "b2"]
    assert oldest_first(["a1", "a2", "b1"], lambda name: ord(name[0])) == ["a1", "a2", "b1"]
    assert oldest_first([], int) == []


def test_one_bad_row_costs_no_other() -> None:
    events = decode(trades(row(q="0.00001"), row(p="1"), row(s="ETH-USDT"), row(p="2")))
    assert kinds(events) == ["symbol", "value"]
    assert [event.trade.price for event in events if isinstance(event, MarketTrade)] == [200, 100]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"p": "0"}, "value"), ({"q": "0.0000"}, "value"), ({"p": "-1"}, "value"), ({"p": "1e5"}, "value"),
        ({"p": "76398.301"}, "value"), ({"q": "0.00009"}, "value"), ({"T": 0}, "value"), ({"T": 1788348255}, ""),
        ({"T": 10**16}, "value"), ({"s": "ETH-USDT"}, "symbol"), ({"p": 76398.3}, "type"), ({"m": "false"}, "type"),
        ({"T": "1788348255196"}, "type"), ({"T": 1.5}, "type"),
    ],
)  # fmt: skip
def test_trades_that_are_none(changes: dict[str, Any], kind: str) -> None:
    assert kinds(decode(trades(row(**changes)))) == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (kline(T=1761327420001), "value"), (kline(l="110298.7"), "value"), (kline(c="110298.7"), "value"),
        (kline(o="0"), "value"), (kline(v="-1"), "value"), (kline(v=2.0741), "type"), (kline(T=0), "value"),
        ({**kline(), "s": "ETH-USDT"}, "symbol"), (documented(t=1761327420001), "value"), (mark(p="0"), "value"),
        (mark(s="ETH-USDT"), "symbol"), (mark(E=0), "value"), (mark(p=None), "type"),
        (push("kline_1m", {"s": "ETH-USDT", "K": documented()["data"]["K"]}), "symbol"),
        (push("trade", row()), "type"), (push("trade", None), "type"), (push("trade", [[1]]), "type"),
        (push("markPrice", [mark()["data"]]), "type"), (push("kline_1m", {"K": None}), "type"),
        ({"code": 0, "data": []}, "type"), ({"reqType": "sub", "dataType": "BTC-USDT@trade", "id": "1"}, "type"),
        ({"code": "0", "dataType": "BTC-USDT@trade", "data": []}, "type"), ({}, "type"),
    ],
)  # fmt: skip
def test_frames_that_are_refused(frame: dict[str, Any], kind: str) -> None:
    assert kinds(decode(frame)) == [kind]


# ---- gzip


def test_gzipped_frames_are_the_plain_ones() -> None:
    codec = codec_of(BTC)
    for frame in (trades(row(), row(T=1788348255190)), mark(), kline(), documented()):
        text = json.dumps(frame)
        for level in (0, 1, 9):
            assert codec.decode(gzip.compress(text.encode(), level), 7) == codec.decode(text, 7)


def test_a_frame_holds_exactly_one_whole_member() -> None:
    codec, one = codec_of(BTC), zipped(json.dumps(trades(row())))
    damaged = bytearray(one)
    damaged[-6] ^= 1  # of the checksum
    raw = zlib.compress(json.dumps(trades(row())).encode())
    for broken in (one + one, one + b"\x00", one + b"Ping", bytes(damaged), b"\x1f\x8b" + raw, one[:2] + one):
        assert kinds(codec.decode(broken, 7)) == ["encoding"], broken
    for end in range(2, len(one)):
        assert kinds(codec.decode(one[:end], 7)) == ["encoding"]
    assert kinds(codec.decode(one[:1], 7)) == ["json"]
    assert kinds(codec.decode(gzip.compress(one), 7)) == ["encoding"], "a member within a member"
    assert kinds(codec.decode(gzip.compress(b'{"code":0,"msg":"\xff"}'), 7)) == ["encoding"]


@given(junk=st.binary(max_size=80), at=st.integers(0, 200), cut=st.integers(0, 4))
def test_damaged_members_never_raise_nor_become_another_market_event(junk: bytes, at: int, cut: int) -> None:
    codec, good = codec_of(BTC), zipped(json.dumps(trades(row())))
    at = at % len(good)
    broken = good[:at] + junk + good[at + cut :]
    events = codec.decode(broken, 7)
    assert events == codec.decode(good, 7) or all(isinstance(event, Malformed) for event in events)


def test_nothing_is_inflated_beyond_the_limit_of_a_frame() -> None:
    codec, text = codec_of(BTC), json.dumps(trades(row()))
    whole = gzip.compress(text.encode().ljust(MAX_FRAME_BYTES))
    assert codec.decode(whole, 7) == codec.decode(text, 7)
    assert kinds(codec.decode(gzip.compress(text.encode().ljust(MAX_FRAME_BYTES + 1)), 7)) == ["size"]
    bomb = gzip.compress(bytes(64 * MAX_FRAME_BYTES))
    assert len(bomb) < MAX_FRAME_BYTES
    tracemalloc.start()
    try:
        assert kinds(codec.decode(bomb, 7)) == ["size"]
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_FRAME_BYTES
    finally:
        tracemalloc.stop()


# ---- answers, heartbeats, topics


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        ({"id": "3", "code": 0, "msg": "", "dataType": "", "data": None}, Ack(3)),
        ({"id": "3", "code": 0, "msg": ""}, Ack(3)),
        ({"id": 3, "code": 0, "msg": "SUCCESS", "timestamp": 1759225965363}, Ack(3)),
        ({"id": "9" * 5000, "code": 0}, Ack("9" * 5000)),
        ({"id": "٣", "code": 0}, Ack("٣")),
        ({"id": "3", "code": 0, "dataType": "BTC-USDT@trade", "data": None}, Ack(3)),
        (
            {"id": "3", "code": 80403, "msg": "your topic num over max 200"},
            Refusal(3, 80403, "your topic num over max 200"),
        ),
        ({"code": 100400, "msg": "", "timestamp": 1696245808833}, Refusal(None, 100400, "")),
        ({"code": 80014, "dataType": "BTC-USDT@trade", "data": []}, Refusal(None, 80014, "BTC-USDT@trade")),
    ],
)
def test_answers(frame: dict[str, Any], event: Event) -> None:
    assert decode(frame) == [event]


def test_spots_heartbeat_is_answered_too() -> None:
    beat = {"ping": "2177c68e4d0e45679965f482929b59c2", "time": "2022-06-07T16:27:36.323+0800"}
    (reply,) = decode(beat)
    assert isinstance(reply, Reply)
    assert json.loads(reply.text) == {"pong": beat["ping"], "time": beat["time"]}
    assert kinds(decode({"ping": 1})) == ["type"]
    assert kinds(codec_of(BTC).decode("Pong", 7)) == ["json"]


def test_topics_and_requests() -> None:
    codec = codec_of(BTC, market("SOL"), specs=("1m", "5s", "1h", "100t"))
    names = ["trade", "markPrice", "kline_1m", "kline_1h"]
    assert codec.streams == tuple(f"{base}-USDT@{name}" for base in ("BTC", "SOL") for name in names)
    assert (codec.load, codec.capacity, codec.confirm(), codec.ping()) == (8, 200, None, "")
    requests = codec.subscribe()
    assert [json.loads(text) for _, text in requests[:1]] == [
        {"id": "1", "reqType": "sub", "dataType": "BTC-USDT@trade"}
    ]
    assert [number for number, _ in requests] == list(range(1, 9))
    assert codec.url() == "wss://open-api-swap.bingx.com/swap-market"
    assert codec.traits.identity is Identity.NONE
    assert not codec.trade_history


def test_intervals_are_those_that_a_day_holds() -> None:
    assert all(BingxCodec.has_kline(CandleSpec.parse(name)) for name in INTERVALS.values())
    assert not any(BingxCodec.has_kline(CandleSpec.parse(text)) for text in ("5s", "10m", "100t", "50v", "1000$"))


def test_names_of_contracts() -> None:
    assert BingxCodec.native_of("BTC/USDT:USDT") == "BTC-USDT"
    assert BingxCodec.native_of("ETH/USDC:USDC") == "ETH-USDC"
    for bad in ("BTC/USD:BTC", "BTC/USDT", "BTC/USDT:USDC", "BTC/USDT:USDT-261225", "BTC-USDT"):
        with pytest.raises(ValueError, match="no linear perpetual"):
            BingxCodec.native_of(bad)


def test_coins_that_ccxt_renames_are_known() -> None:
    general = ccxt.Exchange().commonCurrencies
    own = {name: to for name, to in ccxt.bingx().commonCurrencies.items() if general.get(name) != to}
    assert {to: name for name, to in own.items()} == RENAMED
    assert BingxCodec.native_of("TRUMP/USDT:USDT") == "TRUMPSOL-USDT"
