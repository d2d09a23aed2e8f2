"""BingX perpetual swaps; frames have the shape of those captured from 2024 to 2026, each a gzip member.

``/market`` is the exchange's spot server in so far as it can be mistaken for the other: the same topic of trades, an
object for an array, and a heartbeat in JSON.
"""

import gzip
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from feeds.emulator.dialects.base import ABNORMAL, Close, Frame, Refused, Wire, json_text
from feeds.emulator.dialects.bingx_rest import INTERVALS_MS, BingxRest
from feeds.emulator.player import Bar, Channel, Happening, Mark, Pace, Player, Trades
from feeds.emulator.tape import K, T, Tape
from feeds.emulator.venue import Venue

PACE = Pace(trade_lag_ms=150, trade_batch_ms=500, candle_lag_ms=300, candle_pace_ms=600)
"""A captured push of 23 trades spans 0.6 s; two markets' klines came to 190 messages a minute."""
MARK_MS = 1000
TOPICS_MAX = 200
PING_EVERY_S = 5.0
PONG_WITHIN_S = 30.5
NOT_SUPPORTED = (80015, "dataType not support")
TOO_MANY = (80403, f"your topic num over max {TOPICS_MAX}")
BAD_REQUEST = (100400, "")


class Bingx:
    """The exchange; see `Dialect`."""

    name: ClassVar[str] = "bingx"
    natives: ClassVar[tuple[str, ...]] = ("BTC-USDT", "ETH-USDT", "SOL-USDT")
    ws_paths: ClassVar[tuple[str, ...]] = ("/swap-market", "/market")
    rest_prefix: ClassVar[str] = "/openApi/"
    inbound_per_s: ClassVar[int] = 10
    lifetime_s: ClassVar[float] = math.inf
    farewell: ClassVar[Close] = Close(ABNORMAL)  # no end by age is documented

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._rest = BingxRest(venue)

    def rest(self, path: str, query: Mapping[str, str]) -> Any:
        """Answer a GET of ``/openApi/…``."""
        return self._rest.answer(path, query)

    def limited(self, retry_after_s: int, *, banned: bool) -> Refused:  # noqa: ARG002 (it has one way to say so)
        """Refuse in the body, naming the end of the block."""
        now = self._venue.clock.now_ms()
        rule = "The endpoint trigger frequency limit rule is currently in the disabled period"
        message = f"code:100410:{rule} and will be unblocked after {now + retry_after_s * 1000}"
        return Refused(200, {"code": 100410, "msg": message, "timestamp": now})

    def connect(self, path: str, query: Mapping[str, str], now_s: float) -> Wire:  # noqa: ARG002
        """Tell spot from swap by the path."""
        return _Wire(self._venue, spot=path == "/market", now_s=now_s)


class _Request(msgspec.Struct, rename={"topic": "dataType", "kind": "reqType"}):
    topic: str | list[str]
    id: str = ""
    kind: str = "sub"


class _Wire(Wire):
    def __init__(self, venue: Venue, *, spot: bool, now_s: float) -> None:
        self._venue, self._player, self._spot = venue, Player(venue, PACE), spot
        self._leaking: set[str] = set()
        """Refused topics of which one push gets out all the same."""
        self._pinged_s = self._ponged_s = now_s

    def answer(self, text: str, now_s: float) -> list[Frame]:
        """Take a request for one topic, or a pong."""
        if text == "Pong" or (self._spot and text.startswith('{"pong"')):
            self._ponged_s = now_s
            return []
        try:
            request = msgspec.json.decode(text, type=_Request)
        except msgspec.DecodeError:
            return [_answer("", BAD_REQUEST)]
        if isinstance(request.topic, list):
            return []
        if request.kind == "unsub":
            self._player.unsubscribe(request.topic)
            return [_answer(request.id)]
        return [_answer(request.id, self._subscribe(request.topic))]

    def _subscribe(self, topic: str) -> tuple[int, str]:
        """Play `topic` from now on, once however often it is asked for; return code and message."""
        channel = self._channel(topic)
        if channel is None:
            return NOT_SUPPORTED
        played = len(self._player.topics) - len(self._leaking)
        if topic not in self._player.topics and played >= TOPICS_MAX:
            self._leaking.add(topic)
            self._player.subscribe(topic, channel)
            return TOO_MANY
        if topic not in self._player.topics:
            self._player.subscribe(topic, channel)
        return 0, ""

    def _channel(self, topic: str) -> Channel | None:
        native, _, variant = topic.partition("@")
        if native not in self._venue.tapes:
            return None
        if variant == "trade":
            return Channel(native, "trades")
        if variant == "markPrice" and not self._spot:
            return Channel(native, "mark", MARK_MS)
        step_ms = INTERVALS_MS.get(variant.removeprefix("kline_")) if variant.startswith("kline_") else None
        return Channel(native, "candles", step_ms) if step_ms and not self._spot else None

    def pong(self, now_s: float) -> None:
        """Pass over what nobody asked for: the exchange sends no protocol pings."""

    def due(self, now_ms: int) -> list[Frame]:
        frames: list[Frame] = []
        for one in self._player.due(now_ms):
            if one.topic not in self._player.topics:
                continue
            if one.topic in self._leaking:
                self._leaking.discard(one.topic)
                self._player.unsubscribe(one.topic)
            frames += [_zipped(body) for body in (_spot_trades(one) if self._spot else [_push(one)])]
        return frames

    def idle(self, now_s: float) -> list[Frame]:
        """Ping every five seconds; without a pong for 30.5 s the connection is gone, without a farewell."""
        if now_s - self._ponged_s > PONG_WITHIN_S:
            return [Close(ABNORMAL)]
        if now_s - self._pinged_s < PING_EVERY_S:
            return []
        self._pinged_s = now_s
        number = f"{int(now_s * 1000):032x}"
        return [_zipped(json_text({"ping": number, "time": "2026-11-22T08:00:00.000+0800"}) if self._spot else "Ping")]


def _zipped(text: str) -> bytes:
    return gzip.compress(text.encode(), compresslevel=1, mtime=0)


def _answer(request: str, said: tuple[int, str] = (0, "")) -> Frame:
    code, message = said
    return _zipped(json_text({"id": request, "code": code, "msg": message, "dataType": "", "data": None}))


def _push(one: Happening) -> str:
    if isinstance(one, Trades):
        data: Any = [_trade(one.tape, row) for row in reversed(one.rows)]
    elif isinstance(one, Mark):
        price = one.tape.price_text(one.price)
        data = {"e": "markPriceUpdate", "E": one.event_ms, "s": one.tape.native, "p": price}
    else:
        return json_text({"code": 0, "dataType": one.topic, "s": one.tape.native, "data": [_bar(one)]})
    return json_text({"code": 0, "dataType": one.topic, "data": data})


def _trade(tape: Tape, row: list[int]) -> dict[str, Any]:
    price, size = tape.price_text(row[T.PRICE]), tape.size_text(row[T.SIZE])
    return {"q": size, "p": price, "T": row[T.TIME], "m": bool(row[T.MAKER]), "s": tape.native}


def _bar(one: Bar) -> dict[str, Any]:
    c, o, h, l = (one.tape.price_text(one.bar[column]) for column in (K.CLOSE, K.OPEN, K.HIGH, K.LOW))
    return {"c": c, "o": o, "h": h, "l": l, "v": one.tape.size_text(one.bar[K.VOLUME]), "T": one.bar[K.OPEN_MS]}


def _spot_trades(one: Happening) -> list[str]:
    """Write each trade as spot does, one a message and with an id."""
    assert isinstance(one, Trades)
    return [
        json_text({
            "code": 0,
            "data": {"E": one.event_ms, "e": "trade", "t": str(row[T.ID]), **_trade(one.tape, row)},
            "dataType": one.topic,
            "success": True,
            "timestamp": one.event_ms,
        })
        for row in one.rows
    ]  # fmt: skip
