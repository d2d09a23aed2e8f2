"""The same tape gives the same signals: again, and through the live path over the emulated exchange."""

import asyncio
import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config.schema import Feed
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.replay import Output, Replay, TapeError
from daemon.store import Store
from feeds.capture import AggTrade, frames_from_trades, read_agg_trades, tape_frames, tape_trades
from feeds.emulator.server import Emulator
from feeds.emulator.sources import tape_of_trades
from feeds.market import CandleSpec
from inference import artifact
from inference.artifact import Affine, Calibration
from inference.engine import Model
from inference.revisions import Revision, policy_under
from inference.signals import Rules
from tests.data import shared

APE = "trades/binance_um_APEUSDT-aggTrades-2024-10-18.zip"
ETH = "hftbacktest/usdm_ethusdt_20240808.gz"
HOUR_NS = 3_600_000_000_000


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(artifact.load(artifact.resolve("default")), Rules())


def replay(model: Model, symbol: str, *specs: str, revisions: tuple[Revision, ...] = ()) -> Replay:
    parsed = [CandleSpec.parse(text) for text in specs]
    return Replay(
        model, exchange="binance", symbols=[symbol], specs=parsed, base_topic="lstmd", revisions=revisions
    )  # fmt: skip


def payloads(outputs: list[Output], kind: str) -> list[dict[str, Any]]:
    return [json.loads(output.payload) for output in outputs if output.kind == kind]


def plain_fold(trades: list[AggTrade], interval_ms: int) -> list[tuple[float, ...]]:
    """Fold with exact decimals: OHLC and volume by interval; empty ones are carried on, the forming one is left out."""
    found: dict[int, list[Decimal]] = {}
    for trade in trades:
        price, size = Decimal(trade.price), Decimal(trade.size)
        bar = found.setdefault(trade.time_ms // interval_ms, [price, price, price, price, Decimal(0)])
        bar[1], bar[2], bar[3] = max(bar[1], price), min(bar[2], price), price
        bar[4] += size
    bars: list[tuple[float, ...]] = []
    for at in range(min(found), max(found)):
        close = bars[-1][3] if bars else 0.0
        bars.append(tuple(map(float, found[at])) if at in found else (close, close, close, close, 0.0))
    return bars


@pytest.mark.parametrize(("source", "symbol", "spec"), [(ETH, "ETH/USDT:USDT", "5s"), (APE, "APE/USDT:USDT", "1m")])
def test_candles_of_a_tape_equal_a_plain_fold_of_its_trades(model: Model, source: str, symbol: str, spec: str) -> None:
    path, native = shared(source), symbol.partition(":")[0].replace("/", "")
    outputs = list(replay(model, symbol, spec).run(tape_frames(path, native)))
    got = [tuple(c[k] for k in ("open", "high", "low", "close", "volume")) for c in payloads(outputs, "candle")]
    assert got == plain_fold(list(tape_trades(path, native)), CandleSpec.parse(spec).interval_ns // 1_000_000)
    assert len(got) > 60


def test_a_tape_replayed_twice_gives_the_same_bytes(model: Model) -> None:
    frames = list(tape_frames(shared(APE), "APEUSDT"))
    first, second = (b"\n".join(o.payload for o in replay(model, "APE/USDT:USDT", "1m").run(frames)) for _ in range(2))
    assert first == second
    assert first.count(b'"kind":"signal"') == 1439 - 256


async def test_a_replay_equals_what_the_live_path_decides(model: Model, tmp_path: Path) -> None:
    trades = list(read_agg_trades(shared(APE)))
    begin_ns = trades[0].time_ms * 1_000_000
    emulator = Emulator({"APEUSDT": tape_of_trades("APEUSDT", trades)}, start_ns=begin_ns + 6 * HOUR_NS, speed=900)
    port = await emulator.start()
    live: dict[int, dict[str, Any]] = {}
    enough, stop = asyncio.Event(), asyncio.Event()
    pipeline = Pipeline(model, base_topic="lstmd")

    def moved() -> None:
        for _, work in pipeline.take_work():
            live.update({draft.seq: json.loads(draft.identity) for draft in work.drafts})
        if len(live) > 60:
            enough.set()

    urls = {"ws_url": f"ws://127.0.0.1:{port}", "rest_url": f"http://127.0.0.1:{port}"}
    feed = Feed(exchange="binance", symbols=("APE/USDT:USDT",), **urls)
    with Store(tmp_path / "store.sqlite") as store:
        desk = Desk(0, feed, pipeline, store, Metrics(), moved)
        task = asyncio.create_task(desk.run(stop))
        try:
            async with asyncio.timeout(120):
                await enough.wait()
        finally:
            stop.set()
            task.cancel()
            await asyncio.wait([task])
            await emulator.stop()
    outputs = replay(model, "APE/USDT:USDT", "1m").run(frames_from_trades("APEUSDT", trades))
    taped = {signal["seq"]: signal for signal in payloads(list(outputs), "signal")}
    for signal in taped.values():
        del signal["context"]
    assert len(live) > 60
    assert {seq: taped[seq] for seq in live} == live


def test_what_a_tape_lacks_is_void_and_the_stream_stays_whole(model: Model) -> None:
    trades = list(read_agg_trades(shared(APE)))
    hole = range(trades[20_000].time_ms, trades[20_000].time_ms + 180_000)
    kept = [trade for trade in trades if trade.time_ms not in hole]
    outputs = list(replay(model, "APE/USDT:USDT", "1m").run(frames_from_trades("APEUSDT", kept)))
    signals = payloads(outputs, "signal")
    assert [s["seq"] for s in signals] == list(range(signals[0]["seq"], signals[0]["seq"] + len(signals)))
    voids = [s for s in signals if s["kind"] == "void"]
    assert 3 <= len(voids) <= 4
    assert {tuple(void["reasons"]) for void in voids} == {("not_in_tape",)}


def test_event_candles_of_a_tape_with_a_gap_are_refused(model: Model) -> None:
    trades = list(read_agg_trades(shared(APE)))
    with pytest.raises(TapeError, match="100t"):
        list(replay(model, "APE/USDT:USDT", "100t").run(frames_from_trades("APEUSDT", trades[:50] + trades[51:])))


def test_a_symbol_that_the_exchange_cannot_have_is_refused(model: Model) -> None:
    with pytest.raises(TapeError, match="BTC/USD:BTC"):
        list(replay(model, "BTC/USD:BTC", "1m").run([]))


def revision(model: Model, day: dt.date, spec: str = "1m") -> Revision:
    lines = tuple(Calibration(touch=Affine(a=0.9, b=0.2)) for _ in model.artifact.manifest.horizons)
    found = {"days": 7, "days_found": 7, "series": ("ape",), "observations": {spec: (1,)}}
    return Revision(model=model.id, day=day, calibration={spec: lines}, **found)  # type: ignore[arg-type]


def test_a_tape_goes_under_the_revision_of_its_day(model: Model) -> None:
    day = dt.date(2024, 10, 18)
    frames = list(tape_frames(shared(APE), "APEUSDT"))[:30_000]
    given = revision(model, day)
    plain, revised = (
        payloads(list(replay(model, "APE/USDT:USDT", "1m", revisions=some).run(frames)), "signal")
        for some in ((), (given,))
    )
    assert len(plain) > 60
    assert {signal["policy"] for signal in revised} == {policy_under(model.policy, given.calibration["1m"])}
    for mine, theirs in zip(revised, plain, strict=True):
        assert (mine["seq"], mine["inputs_hash"]) == (theirs["seq"], theirs["inputs_hash"])
        assert mine["p_flat"] < theirs["p_flat"]


def test_a_tape_under_revisions_needs_that_of_each_day(model: Model) -> None:
    frames = list(tape_frames(shared(APE), "APEUSDT"))[:3_000]
    for wrong in (revision(model, dt.date(2024, 10, 17)), revision(model, dt.date(2024, 10, 18), "5m")):
        with pytest.raises(TapeError, match="no revision of 1m candles for 2024-10-18 is given"):
            list(replay(model, "APE/USDT:USDT", "1m", revisions=(wrong,)).run(frames))


def test_revisions_of_another_model_or_twice_for_a_day_are_refused(model: Model) -> None:
    given = revision(model, dt.date(2024, 10, 18))
    with pytest.raises(TapeError, match="two revisions for 2024-10-18"):
        replay(model, "APE/USDT:USDT", "1m", revisions=(given, given))
    with pytest.raises(TapeError, match="is of other-1, not of"):
        replay(model, "APE/USDT:USDT", "1m", revisions=(msgspec.structs.replace(given, model="other-1"),))
