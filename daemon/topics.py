"""Topics and payloads: the contract with subscribers. Pure.

Every payload is one JSON object of a type below; JSON Schema and AsyncAPI are generated from these types. Times are RFC
3339 UTC text with milliseconds.
"""

import datetime as dt
import functools
import hashlib
from typing import Annotated, Any, Literal

import msgspec

from feeds.market import Candle, CandleSpec, Market
from inference.signals import Confirmation, Side

SCHEMA = "lstmd/1"
"""Version of the payloads; it changes when a field changes its meaning or goes."""

_ENCODER = msgspec.json.Encoder()


class Context(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is true of this publication only; no part of a signal's identity."""

    event_time: str | None = None
    """The exchange's time when the candle was closed."""
    published_at: str | None = None
    boot_id: str | None = None
    late: bool = False
    """Published after the fact: while the market was tainted, or the daemon away."""
    replayed: bool = False
    """Sent again on request."""
    latency_us: int | None = None
    """From the receipt of the closing event to the decision, by our clock."""
    stages_us: dict[str, int] | None = None
    """Where it went, by stage; `exchange` lies before the receipt and is told by two clocks."""
    origin: str | None = None
    """Where the candle's figures come from: trades, exchange or repaired."""
    funding_rate: float | None = None
    """The exchange's predicted rate of the next settlement."""
    next_funding_time: str | None = None
    basis: float | None = None
    """Mark over index price, less one."""
    open_interest: float | None = None
    """As the exchange's stream gives it, in its own unit; none where it does not."""


class Signal(msgspec.Struct, kw_only=True):
    """The decision on one closed candle."""

    schema: str = SCHEMA
    kind: Literal["signal"] = "signal"
    id: str
    seq: int
    exchange: str
    symbol: str
    spec: str
    model: str
    policy: str
    inputs_hash: str
    close_time: str
    valid_until: str
    side: Side
    p_short: float
    p_flat: float
    p_long: float
    confidence: float
    expected_move_bps: float
    volatility_bps: float
    edge_bps: float
    horizon_candles: int
    reference_price: float
    stop_bps: float
    max_leverage: float
    size_hint: float
    confirmations: list[Confirmation]
    state: Literal["ready"] = "ready"
    reasons: list[str]
    context: Context


class Void(msgspec.Struct, kw_only=True):
    """Ordinals without a signal, `from_seq` to `to_seq`.

    The exchange has no such candle (`void`); or an absence was too long to make up for, the model was not ready, or
    what waited for the broker was too much (`gap`); or the day of event candles begins (`day`).
    """

    schema: str = SCHEMA
    kind: Literal["void", "gap", "day"]
    id: str
    seq: int
    exchange: str
    symbol: str
    spec: str
    model: str
    policy: str
    inputs_hash: str
    close_time: str
    valid_until: str
    from_seq: int
    to_seq: int
    state: Literal["void"] = "void"
    reasons: list[str]
    context: Context


class Live(msgspec.Struct, kw_only=True):
    """What the signal would be if the forming candle closed now; provisional, and gone with the next."""

    schema: str = SCHEMA
    kind: Literal["live"] = "live"
    closed: Literal[False] = False
    seq: int
    exchange: str
    symbol: str
    spec: str
    model: str
    event_time: str
    close_time: str | None
    """When the candle will close; null for candles that do not close by time."""
    complete: bool
    """Whether every trade of the candle so far was seen; not so just after a start or an outage."""
    side: Side
    p_short: float
    p_flat: float
    p_long: float
    confidence: float
    expected_move_bps: float
    volatility_bps: float
    edge_bps: float
    size_hint: float
    price: float


class CandleMessage(msgspec.Struct, kw_only=True):
    """A closed candle."""

    schema: str = SCHEMA
    exchange: str
    symbol: str
    spec: str
    open_time: str
    close_time: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    volume_unit: str
    """What `volume` counts: the base coin, or contracts of a stated size."""
    trades: int
    origin: str
    closed: bool


class Difference(msgspec.Struct, kw_only=True):
    """One figure of a candle, ours and the exchange's."""

    figure: str
    """open, high, low, close or volume."""
    ours: float
    exchange: float


class Quality(msgspec.Struct, kw_only=True):
    """A candle of ours was not the exchange's own, whose figures stand from here on; no signal is rewritten."""

    schema: str = SCHEMA
    exchange: str
    symbol: str
    spec: str
    seq: int
    close_time: str
    origin: str | None
    """Where our figures came from; none where we had found that there was no candle."""
    differences: list[Difference]
    repaired: bool
    """Whether a signal had been decided on our figures, so that journal and state were repaired after it."""


class Status(msgspec.Struct, kw_only=True):
    """Whether the daemon is connected to the broker; the last will says offline."""

    schema: str = SCHEMA
    state: Literal["online", "offline"]
    boot_id: str


AvailabilityState = Literal[
    "online", "warming", "tainted", "stale", "offline", "refused", "halted", "delisted", "changed"
]


class Availability(msgspec.Struct, kw_only=True):
    """Whether a market's signals can be relied on; combine it with `Status`."""

    schema: str = SCHEMA
    exchange: str
    symbol: str
    state: AvailabilityState
    reason: str
    since: str


class Info(msgspec.Struct, kw_only=True):
    """What runs."""

    schema: str = SCHEMA
    version: str
    boot_id: str
    started_at: str
    config_hash: str
    model: str
    policy: str
    markets: list[dict[str, str]]
    stores_set_aside: list[str]
    """Damaged stores that lie in the state folder until the operator removes them; each says when, and why."""


class Health(msgspec.Struct, kw_only=True):
    """How it runs, every ten seconds."""

    schema: str = SCHEMA
    uptime_s: float
    rss_bytes: int
    outbox_depth: int
    outbox_age_s: float
    loop_lag_ms: float
    feeds: dict[str, dict[str, float | int | str | None]]


class Request(msgspec.Struct, kw_only=True):
    """A question on ``request/{command}``; `transaction` comes back unchanged."""

    transaction: str | int | None = None
    topic: str | None = None
    """`replay`: the signal topic to send again."""
    from_seq: Annotated[int, msgspec.Meta(ge=0, le=10**15)] | None = None
    level: str | None = None
    """`log_level`: the new level."""


class Response(msgspec.Struct, kw_only=True):
    """The answer on ``response/{command}``."""

    schema: str = SCHEMA
    transaction: str | int | None
    ok: bool
    error: str | None = None
    data: dict[str, Any] = {}


class HummingbotSignal(msgspec.Struct, kw_only=True):
    """What hummingbot's ai_livestream controller reads."""

    id: str
    trading_pair: str
    probabilities: tuple[float, float, float]
    timestamp: int
    target_pct: float


PAYLOADS: dict[str, type[msgspec.Struct]] = {
    "status": Status,
    "info": Info,
    "health": Health,
    "{exchange}/{market}/availability": Availability,
    "{exchange}/{market}/{spec}/signal": Signal,
    "{exchange}/{market}/{spec}/last": Signal,
    "{exchange}/{market}/{spec}/live": Live,
    "{exchange}/{market}/{spec}/candle": CandleMessage,
    "{exchange}/{market}/{spec}/quality": Quality,
    "request/{command}": Request,
    "response/{command}": Response,
}
"""Payload type per topic under the base topic. A signal or last topic also carries `Void`."""


def encode(payload: msgspec.Struct) -> bytes:
    """Write a payload as JSON, fields in the order of the type."""
    return _ENCODER.encode(payload)


def market_topic(base: str, market: Market, leaf: str) -> str:
    """Name a topic of a market: ``lstmd/binance/BTC-USDT-PERP/availability``."""
    return f"{base}/{market.exchange}/{market.slug}/{leaf}"


def spec_topic(base: str, market: Market, spec: CandleSpec, leaf: str) -> str:
    """Name a topic of a market's candles: ``lstmd/binance/BTC-USDT-PERP/1m/signal``."""
    return f"{base}/{market.exchange}/{market.slug}/{spec}/{leaf}"


def rfc3339(time_ns: int) -> str:
    """Write a time as UTC text with milliseconds, cut not rounded: ``2024-10-18T10:01:00.000Z``."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{_to_the_second(seconds)}.{rest // 1_000_000:03d}Z"


@functools.lru_cache(maxsize=256)  # ticks come many to a second, candles end together
def _to_the_second(seconds: int) -> str:
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%S}"


def signal_id(market: Market, spec: CandleSpec, seq: int, model: str, policy: str, inputs_hash: str) -> str:
    """Derive a signal's id from all that decides its bytes."""
    parts = (market.exchange, market.symbol, spec.text, str(seq), model, policy, inputs_hash)
    return hashlib.blake2b("|".join(parts).encode(), digest_size=16).hexdigest()


def gap_id(exchange: str, symbol: str, spec: str, first: int, last: int, model: str, policy: str) -> str:
    """Derive the id of a gap message; its range takes the place of the inputs."""
    parts = ("gap", exchange, symbol, spec, str(first), str(last), model, policy)
    return hashlib.blake2b("|".join(parts).encode(), digest_size=16).hexdigest()


def candle_message(market: Market, spec: CandleSpec, candle: Candle) -> CandleMessage:
    """Dress a candle for its topic."""
    return CandleMessage(
        exchange=market.exchange,
        symbol=market.symbol,
        spec=spec.text,
        open_time=rfc3339(candle.open_time_ns),
        close_time=rfc3339(candle.close_time_ns),
        open=candle.open,
        high=candle.high,
        low=candle.low,
        close=candle.close,
        volume=candle.volume,
        volume_unit=market.volume_unit,
        trades=candle.trades,
        origin=candle.origin,
        closed=candle.closed,
    )


def quality_message(
    market: Market, spec: CandleSpec, ours: Candle | None, official: Candle, *, repaired: bool
) -> Quality:
    """Set a candle of ours beside the exchange's."""
    differences = [
        Difference(figure=name, ours=getattr(ours, name), exchange=getattr(official, name))
        for name in (ours.differences(official) if ours else ())
    ]
    return Quality(
        exchange=market.exchange,
        symbol=market.symbol,
        spec=spec.text,
        seq=official.seq,
        close_time=rfc3339(official.close_time_ns),
        origin=ours.origin if ours else None,
        differences=differences,
        repaired=repaired,
    )


def with_context(identity: bytes, context: bytes, stamp: bytes = b"") -> bytes:
    """Join a stored identity and context (JSON objects) with this publication's own fields (JSON members)."""
    if stamp:
        context = context[:-1] + (b"," if len(context) > 2 else b"") + stamp + b"}"
    return identity[:-1] + b',"context":' + context + b"}"


def identity_of(payload: Signal | Void) -> bytes:
    """Write every field but `context`, which is what must never change for an id."""
    context = b',"context":' + _ENCODER.encode(payload.context) + b"}"  # the last field
    return _ENCODER.encode(payload)[: -len(context)] + b"}"


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each payload type by its name."""
    types = {**{t.__name__: t for t in PAYLOADS.values()}, "Void": Void, "HummingbotSignal": HummingbotSignal}
    return {name: msgspec.json.schema(kind) for name, kind in types.items()}
