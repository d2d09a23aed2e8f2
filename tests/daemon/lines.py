"""A small model, invented candles and the line that turns them into messages."""

import math
from collections.abc import Iterable

import msgspec

from daemon.line import Cause, Line, LineWork
from daemon.topics import Context, Signal, Void
from feeds.market import Candle, CandleSpec, Market, Origin
from inference.artifact import Artifact, Manifest, Parity, seal, sizes_of
from inference.engine import MarketEngine, Model
from inference.funding import FundingBook
from inference.revisions import RevisionBook
from inference.signals import Rules
from tests.inference.ensembles import ensemble

MINUTE = CandleSpec.parse("1m")
MINUTE_NS = MINUTE.interval_ns
MARKET = Market(exchange="binance", symbol="BTC/USDT:USDT", native="BTCUSDT", price_decimals=1, size_decimals=3)
WARMUP, EPOCH = 8, 20
BEGIN = 28_000_000
"""An ordinal of 2023 at which an epoch of `small_artifact` begins."""


def small_artifact(*specs: str, warmup: int = WARMUP, epoch: int = EPOCH, seed: int = 0) -> Artifact:
    """Make a random artifact, small enough for thousands of candles a second."""
    specs = specs or ("1m",)
    weights = ensemble(members=1, hidden=4, outputs=3, seed=seed)
    manifest = Manifest(
        name="small",
        created="2025-01-01T00:00:00.000Z",
        sizes=sizes_of(weights),
        specs=specs,
        warmup=warmup,
        epoch=epoch,
        horizons=(5,),
        signal_horizon=dict.fromkeys(specs, 5),
        parity=Parity(candles=10_000, step_vs_torch_max_abs=0.0, h_max_abs=0.0, c_max_scaled=0.0, features_max_abs=0.0),
    )
    return seal(weights, manifest)


def small_model(*, seed: int = 0, rules: Rules = Rules()) -> Model:  # noqa: B008 (frozen)
    return Model(small_artifact(seed=seed), rules)


MODEL = small_model()


def new_line(
    model: Model = MODEL, market: Market = MARKET, spec: CandleSpec = MINUTE, revisions: RevisionBook | None = None
) -> Line:
    """Make a line whose market never pays funding."""
    funding = FundingBook()
    funding.extend([], asked_at_ns=1 << 62)
    engine = MarketEngine(model, market, spec, revisions)
    return Line(base_topic="lstmd", market=market, spec=spec, engine=engine, funding=funding, context=Context)


def candle(seq: int, *, shift: float = 0.0) -> Candle:
    """Invent minute candle `seq`; the same one every time."""
    close = round(100 + 5 * math.sin(seq / 7) + math.sin(seq * 12.9898) + shift, 1)
    opened = round(100 + 5 * math.sin((seq - 1) / 7) + math.sin((seq - 1) * 12.9898), 1)
    return Candle(
        seq=seq, open_time_ns=(seq - 1) * MINUTE_NS, close_time_ns=seq * MINUTE_NS, open=opened,
        high=max(opened, close) + 0.3, low=min(opened, close) - 0.2, close=close, volume=10.0 + seq % 5, trades=9,
        closed=True, origin=Origin.TRADES,
    )  # fmt: skip


def live(seq: int) -> Cause:
    """Say that candle `seq` was closed by an event received just now."""
    return Cause(seq * MINUTE_NS + 1, seq * MINUTE_NS + 2)


def offer_all(line: Line, seqs: Iterable[int]) -> None:
    for seq in seqs:
        line.offer(candle(seq), live(seq))


def messages(work: LineWork) -> list[Signal | Void]:
    """Decode drafts strictly as what their topic may carry."""
    return [decoded(draft.identity) for draft in work.drafts]


def decoded(identity: bytes) -> Signal | Void:
    whole = identity[:-1] + b',"context":{}}'
    if msgspec.json.decode(identity)["kind"] == "signal":
        return msgspec.json.decode(whole, type=Signal, strict=True)
    return msgspec.json.decode(whole, type=Void, strict=True)
