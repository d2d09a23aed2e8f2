"""Bybit v5 futures, linear and inverse on a socket each; frames have the shape of those captured in 2026."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from feeds.emulator.dialects.base import ABNORMAL, Close, Frame, Refused, Wire, json_text
from feeds.emulator.dialects.bybit_rest import (
    INTERVALS_MS,
    BybitRest,
    category_of,
    dated,
    error,
    executions,
    kline_row,
    opened_at,
    trimmed,
)
from feeds.emulator.funding import next_funding
from feeds.emulator.player import Bar, Channel, Happening, Mark, Pace, Player, Trades
from feeds.emulator.tape import K
from feeds.emulator.venue import Venue

PACE = Pace(trade_lag_ms=1, trade_batch_ms=1, candle_lag_ms=250, candle_pace_ms=1000)
"""Trades were seen to leave a millisecond after they happened, those of one match together."""
TICKER_MS = 100
ARGS_MAX_CHARACTERS = 21_000
ROWS_MAX = 1024
IDLE_S, IDLE_SCAN_S = 600.0, 30.0


class Bybit:
    """The exchange; see `Dialect`."""

    name: ClassVar[str] = "bybit"
    natives: ClassVar[tuple[str, ...]] = ("BTCUSDT", "ETHUSDT", "BTCUSD")
    ws_paths: ClassVar[tuple[str, ...]] = ("/v5/public/linear", "/v5/public/inverse")
    rest_prefix: ClassVar[str] = "/v5/"
    inbound_per_s: ClassVar[int] = 100  # no limit is documented
    lifetime_s: ClassVar[float] = math.inf
    farewell: ClassVar[Close] = Close(1001, "")

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._rest = BybitRest(venue)

    def rest(self, path: str, query: Mapping[str, str]) -> Any:
        """Answer a GET of ``/v5/…``."""
        return self._rest.answer(path, query)

    def limited(self, retry_after_s: int, *, banned: bool) -> Refused:
        """Refuse with the code 10006 under HTTP 200, or with HTTP 403."""
        now = self._venue.clock.now_ms()
        if banned:
            return Refused(403, "403, access too frequent")
        headers = {"X-Bapi-Limit-Status": "0", "X-Bapi-Limit-Reset-Timestamp": str(now + retry_after_s * 1000)}
        return Refused(200, error(10006, "Too many visits!", now), headers)

    def connect(self, path: str, query: Mapping[str, str], now_s: float) -> Wire:  # noqa: ARG002
        """Take a connection to ``/v5/public/linear`` or ``/v5/public/inverse``."""
        return _Wire(self._venue, path.rpartition("/")[2], now_s)


class _Request(msgspec.Struct):
    op: str
    args: list[str] = []
    req_id: str | int = ""


class _Wire(Wire):
    def __init__(self, venue: Venue, category: str, now_s: float) -> None:
        self._venue, self._category = venue, category
        self._player = Player(venue, PACE)
        self._told: dict[str, dict[str, str]] = {}
        self._heard_s = self._scanned_s = now_s

    def answer(self, text: str, now_s: float) -> list[Frame]:
        self._heard_s = now_s
        try:
            request = msgspec.json.decode(text, type=_Request)
        except msgspec.DecodeError:
            return [_reply(_Request(""), "error:invalid op", success=False)]
        if request.op == "ping":
            return [_reply(request, "pong")]
        if request.op not in ("subscribe", "unsubscribe"):
            return [_reply(request, "error:invalid op", success=False)]
        subscribing = request.op == "subscribe"
        if wrong := self._wrong(request.args, known=not subscribing):
            return [_reply(request, wrong, success=False)]
        for topic in request.args:
            if subscribing:
                self._player.subscribe(topic, self._channel(topic))
            else:
                self._player.unsubscribe(topic)
        tickers = [topic for topic in request.args if subscribing and topic.startswith("tickers.")]
        return [_reply(request, ""), *(self._snapshot(topic) for topic in tickers)]

    def _wrong(self, args: list[str], *, known: bool) -> str:
        """Say what is wrong with a request; one bad topic fails all of it."""
        if sum(len(topic) for topic in [*args, *self._player.topics]) > ARGS_MAX_CHARACTERS:
            return f"error:args size >{ARGS_MAX_CHARACTERS}"
        for topic in args:
            if self._channel(topic) is None:
                return f"error:handler not found,topic:{topic}"
            if (topic in self._player.topics) is not known:
                return f"error:{'not' if known else 'already'} subscribed,topic:{topic}"
        return ""

    def _channel(self, topic: str) -> Channel | None:
        kind, _, name = topic.partition(".")
        interval, _, native = name.rpartition(".")
        if native not in self._venue.tapes or category_of(native) != self._category:
            return None
        if kind == "kline":
            return Channel(native, "candles", INTERVALS_MS[interval]) if interval in INTERVALS_MS else None
        kinds = {"publicTrade": Channel(native, "trades"), "tickers": Channel(native, "mark", TICKER_MS)}
        return None if interval else kinds.get(kind)

    def pong(self, now_s: float, /) -> None:
        """Pass over what nobody asked for: the exchange is not known to send protocol pings."""

    def due(self, now_ms: int) -> list[Frame]:
        return [frame for one in self._player.due(now_ms) for frame in self._frames(one)]

    def idle(self, now_s: float) -> list[Frame]:
        """End a connection that has been silent for ten minutes; that is looked at every half minute."""
        if now_s - self._scanned_s < IDLE_SCAN_S:
            return []
        self._scanned_s = now_s
        return [Close(ABNORMAL)] if now_s - self._heard_s >= IDLE_S else []

    def _frames(self, one: Happening) -> Iterator[Frame]:
        if isinstance(one, Trades):
            rows = executions(one.tape, one.rows)
            for start in range(0, len(rows), ROWS_MAX):
                yield _push(one.topic, one.event_ms, [_public_trade(row) for row in rows[start : start + ROWS_MAX]])
        elif isinstance(one, Bar):
            yield _push(one.topic, one.event_ms, [_kline(one)])
        else:
            known, now = self._told.get(one.topic, {}), _ticker(one)
            if changed := {key: value for key, value in now.items() if known.get(key) != value}:
                self._told[one.topic] = now
                yield _ticker_push(one, "delta", changed)

    def _snapshot(self, topic: str) -> Frame:
        tape, now = self._venue.tapes[topic.partition(".")[2]], self._venue.clock.now_ms()
        mark = Mark(topic, tape, now, tape.price_at(now), *next_funding(tape, now))
        self._told[topic] = _ticker(mark)
        return _ticker_push(mark, "snapshot", self._told[topic])


def _reply(request: _Request, message: str, *, success: bool = True) -> str:
    """Answer a request as a whole; without an id of its own it gets an empty one."""
    body = {
        "success": success,
        "ret_msg": message,
        "conn_id": "d2f3c1pdhnkdnk9ihr0g-2ovn",
        "req_id": str(request.req_id),
    }
    return json_text({**body, "op": request.op})


def _push(topic: str, event_ms: int, rows: list[dict[str, Any]]) -> str:
    return json_text({"topic": topic, "type": "snapshot", "ts": event_ms, "data": rows})


def _public_trade(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "T": int(row["time"]), "s": row["symbol"], "S": row["side"], "v": row["size"], "p": row["price"],
        "L": "PlusTick" if row["side"] == "Buy" else "MinusTick", "i": row["execId"], "BT": row["isBlockTrade"],
        "RPI": row["isRPITrade"], "seq": int(row["seq"]),
    }  # fmt: skip


def _kline(one: Bar) -> dict[str, Any]:
    start = one.bar[K.OPEN_MS]
    _, o, h, l, c, volume, turnover = kline_row(one.tape, opened_at(one.bar, one.tape.price_at(start - 1)))
    return {
        "start": start, "end": start + one.step_ms - 1, "interval": one.topic.split(".")[1], "open": o, "close": c,
        "high": h, "low": l, "volume": volume, "turnover": turnover, "confirm": one.closed, "timestamp": one.event_ms,
    }  # fmt: skip


def _ticker(one: Mark) -> dict[str, str]:
    """Describe a market at a moment; the index moves beside the mark, three times a second."""
    tape, price = one.tape, one.tape.price_text(one.price)
    funded = not dated(tape.native)
    return {
        "symbol": tape.native, "tickDirection": "ZeroPlusTick", "lastPrice": price, "markPrice": price,
        "indexPrice": tape.price_text(one.price + one.event_ms // 300 % 7 * tape.tick),
        "openInterest": tape.size_text(10**6 + one.event_ms // 5000 % 1000), "fundingIntervalHour": "8",
        "nextFundingTime": str(one.funding_ms) if funded else "0", "fundingRate": trimmed(one.rate) if funded else "",
        "bid1Price": tape.price_text(max(1, one.price - tape.tick)), "ask1Price": price,
    }  # fmt: skip


def _ticker_push(one: Mark, kind: str, data: dict[str, str]) -> str:
    body = {"topic": one.topic, "type": kind, "data": {"symbol": one.tape.native, **data}}
    return json_text({**body, "cs": 10**11 + one.event_ms, "ts": one.event_ms})
