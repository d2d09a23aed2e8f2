"""Binance USDⓈ-M futures as it has been since April 2026; frames have the shape of those captured that year."""

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from feeds.capture import AggTrade, agg_trade_data
from feeds.emulator.dialects.base import Close, Frame, Ping, Refused, Wire, json_text
from feeds.emulator.dialects.binance_rest import INTERVALS_MS, BinanceRest, kline_row
from feeds.emulator.player import Bar, Channel, Happening, Mark, Pace, Player, Trades
from feeds.emulator.tape import K, T
from feeds.emulator.venue import Venue

PACE = Pace(trade_lag_ms=120, candle_lag_ms=250, candle_pace_ms=250)
"""Trades are aggregated for 100 ms: 120 to 155 ms pass in captures."""
FAMILIES = {"market": ("aggTrade", "kline", "markPrice"), "public": ("trade",)}
"""What each routed path carries; the un-routed root acknowledges and stays silent."""
PING_EVERY_S = 180.0
PONG_WITHIN_S = 600.0


class Binance:
    """The exchange; see `Dialect`."""

    name: ClassVar[str] = "binance"
    natives: ClassVar[tuple[str, ...]] = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
    ws_paths: ClassVar[tuple[str, ...]] = tuple(
        family + path for family in ("", "/market", "/public") for path in ("/stream", "/ws", "/ws/{stream}")
    )
    rest_prefix: ClassVar[str] = "/fapi/v1/"
    inbound_per_s: ClassVar[int] = 15  # documented 10; some 15 back to back were seen to end a connection
    lifetime_s: ClassVar[float] = 86_400.0
    farewell: ClassVar[Close] = Close(1001, "disconnected")  # which code it uses is not documented

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._rest = BinanceRest(venue)

    def rest(self, path: str, query: Mapping[str, str]) -> Any:
        """Answer a GET of ``/fapi/v1/…``."""
        return self._rest.answer(path, query)

    def limited(self, retry_after_s: int, *, banned: bool) -> Refused:
        """Refuse with 429, or 418 and a ban."""
        message = "Way too many requests; IP banned." if banned else "Too many requests."
        status, body = (418 if banned else 429), {"code": -1003, "msg": message}
        return Refused(status, body, {"Retry-After": str(retry_after_s)})

    def connect(self, path: str, query: Mapping[str, str], now_s: float) -> Wire:
        """Read the path: ``/market/stream?streams=a/b``, ``/market/ws``, ``/market/ws/a`` and their like."""
        levels = path.strip("/").split("/")
        family = levels.pop(0) if levels[0] not in ("ws", "stream") else ""
        named = levels[1:] or query.get("streams", "").split("/")
        wire = _Wire(self._venue, family, combined=levels[0] == "stream", now_s=now_s)
        wire.subscribe([name for name in named if "@" in name])
        return wire


class _Request(msgspec.Struct):
    method: str
    params: list[str] = []
    id: int | str | None = None


class _Wire(Wire):
    def __init__(self, venue: Venue, family: str, *, combined: bool, now_s: float) -> None:
        self._player = Player(venue, PACE)
        self._carried, self._combined = FAMILIES.get(family, ()), combined
        self._pinged_s = self._ponged_s = now_s

    def subscribe(self, names: list[str]) -> None:
        """Play these streams too; unknown ones are accepted and stay silent, as the exchange does it."""
        for name in names:
            channel = _channel(name)
            carried = channel is not None and name.partition("@")[2].startswith(self._carried)
            self._player.subscribe(name, channel if carried else None)

    def answer(self, text: str, _now_s: float, /) -> list[Frame]:
        try:
            request = msgspec.json.decode(text, type=_Request)
        except msgspec.DecodeError as error:
            return [_error(str(error), None)]
        result = None
        if request.method == "SUBSCRIBE":
            self.subscribe(request.params)
        elif request.method == "UNSUBSCRIBE":
            for name in request.params:
                self._player.unsubscribe(name)
        elif request.method == "LIST_SUBSCRIPTIONS":
            result = list(self._player.topics)
        else:
            return [_error(f"Invalid request: unknown method {request.method}", request.id)]
        return [json_text({"result": result, "id": request.id})]

    def due(self, now_ms: int) -> list[Frame]:
        frames = [(one.topic, _data(one)) for one in self._player.due(now_ms)]
        return [f'{{"stream":"{name}","data":{data}}}' if self._combined else data for name, data in frames]

    def pong(self, now_s: float, /) -> None:
        self._ponged_s = now_s

    def idle(self, now_s: float, /) -> list[Frame]:
        """Ping every three minutes; end a connection that has been silent for ten."""
        if now_s - self._ponged_s > PONG_WITHIN_S:
            return [Close(1008, "Pong timeout")]
        if now_s - self._pinged_s < PING_EVERY_S:
            return []
        self._pinged_s = now_s
        return [Ping()]


def _channel(stream: str) -> Channel | None:
    symbol, _, variant = stream.partition("@")
    native = symbol.upper()
    if variant in ("aggTrade", "trade"):
        return Channel(native, "trades")
    if variant in ("markPrice", "markPrice@1s"):
        return Channel(native, "mark", 1000 if variant.endswith("@1s") else 3000)
    step_ms = INTERVALS_MS.get(variant.removeprefix("kline_"))
    return Channel(native, "candles", step_ms) if step_ms else None


def _error(message: str, request: int | str | None) -> str:
    return json_text({"error": {"code": 2, "msg": message}, "id": request})


def _data(one: Happening) -> str:
    if isinstance(one, Bar):
        return _kline(one)
    if isinstance(one, Mark):
        return _mark(one)
    return _agg_trade(one) if one.topic.endswith("@aggTrade") else _trade(one)


def _agg_trade(one: Trades) -> str:
    tape = one.tape
    ident, time, p, q, first, last, maker = one.rows[0]
    trade = AggTrade(ident, tape.price_text(p), tape.size_text(q), first, last, time, bool(maker))
    return agg_trade_data(tape.native, trade, one.event_ms)


def _trade(one: Trades) -> str:
    """Write it as one execution, under its own id: the tape knows aggregates only."""
    tape, row = one.tape, one.rows[0]
    return (
        f'{{"e":"trade","E":{one.event_ms},"T":{row[T.TIME]},"s":"{tape.native}","t":{row[T.ID]},'
        f'"p":"{tape.price_text(row[T.PRICE])}","q":"{tape.size_text(row[T.SIZE])}","X":"MARKET",'
        f'"m":{"true" if row[T.MAKER] else "false"}}}'
    )


def _kline(one: Bar) -> str:
    native, bar, interval = one.tape.native, one.bar, one.topic.partition("_")[2]
    t, o, h, l, c, v, end, q, n, buy, buy_quote, _ = kline_row(one.tape, bar, one.step_ms)
    return (
        f'{{"e":"kline","E":{one.event_ms},"s":"{native}","k":{{"t":{t},"T":{end},"s":"{native}",'
        f'"i":"{interval}","f":{bar[K.FIRST]},"L":{bar[K.LAST]},"o":"{o}","c":"{c}","h":"{h}","l":"{l}","v":"{v}",'
        f'"n":{n},"x":{"true" if one.closed else "false"},"q":"{q}","V":"{buy}","Q":"{buy_quote}","B":"0"}}}}'
    )


def _mark(one: Mark) -> str:
    p = one.tape.price_text(one.price)
    return (
        f'{{"e":"markPriceUpdate","E":{one.event_ms},"s":"{one.tape.native}","p":"{p}","ap":"{p}","P":"{p}","i":"{p}",'
        f'"r":"{one.rate}","T":{one.funding_ms},"st":1}}'
    )
