"""What is recorded beside a daemon gives the daemon's own candles and signals again, to the bit."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from config.schema import Feed
from daemon import record as recording
from daemon import tapes, topics
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.record import record
from daemon.replay import Replay, TapeError
from daemon.store import Store
from feeds.emulator import Emulator, tape_from
from feeds.emulator.dialects import DIALECTS
from feeds.errors import RequestRefused
from feeds.events import Entry
from feeds.exchanges import CODECS
from feeds.history import open_history
from feeds.market import CandleSpec
from feeds.playback import play, read_header
from inference.engine import Model
from inference.signals import Rules
from tests.daemon.brokers import until
from tests.daemon.lines import small_artifact

BEGIN_NS = 1_736_121_600 * 10**9  # 2025-01-06
MINUTE_NS = 60 * 10**9
START_NS = BEGIN_NS + 466 * MINUTE_NS
"""07:46: an epoch begins at 08:00 and is warmed from 07:52 on; funding is settled at 08:00."""
MINUTE = CandleSpec.parse("1m")
MODEL = Model(small_artifact("1m"), Rules())
FIGURES = ("open", "high", "low", "close", "volume")


class Live:
    """What a daemon's feed decides."""

    def __init__(self) -> None:
        self.signals: dict[int, Any] = {}
        self.candles: dict[str, list[float]] = {}
        """Figures by close."""
        self.pipeline = Pipeline(MODEL, base_topic="lstmd")

    def moved(self) -> None:
        for _, work in self.pipeline.take_work():
            self.signals.update({draft.seq: json.loads(draft.identity) for draft in work.drafts})
            for candle in work.candles:
                close = topics.rfc3339(candle.close_time_ns)
                self.candles[close] = [getattr(candle, key) for key in FIGURES]


async def recorded(folder: Path, exchange: str, live: Live, emulator: Emulator, port: int) -> None:
    """Record, and let a daemon's feed run beside it, for twenty signals past the first whole epoch."""
    urls = {"ws_url": f"ws://127.0.0.1:{port}", "rest_url": f"http://127.0.0.1:{port}"}
    history = open_history(exchange, urls["rest_url"])
    (symbol,) = await history.markets()
    await history.aclose()
    stop = asyncio.Event()
    with Store(folder / "store.sqlite") as store:
        feed = Feed(exchange=exchange, symbols=(symbol,), **urls)
        desk = Desk(0, feed, live.pipeline, store, Metrics(), live.moved)
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            group.create_task(
                record(
                    folder / "rec", exchange=exchange, symbols=[symbol], specs=[MINUTE], max_bytes=1 << 28, stop=stop,
                    **urls,
                )
            )  # fmt: skip
            await until(lambda: emulator.now_ns() > START_NS)  # the recorder has subscribed: now the clock runs
            running = group.create_task(desk.run(stop))
            await until(lambda: sum(seq * MINUTE_NS > START_NS + 14 * MINUTE_NS for seq in live.signals) >= 20)
            stop.set()
            running.cancel()


def played(folder: Path, exchange: str) -> tuple[dict[int, Any], dict[str, list[float]]]:
    found = tapes.find([folder / "rec"])
    assert (found.exchange, found.specs) == (exchange, ["1m"])
    said: list[str] = []
    player = Replay(MODEL, exchange=exchange, symbols=[], specs=[MINUTE], base_topic="lstmd")
    signals, candles = {}, {}
    for output in found.outputs(player, "", said.append):
        payload = json.loads(output.payload)
        if output.kind == "candle":
            candles[payload["close_time"]] = [payload[key] for key in FIGURES]
        else:
            del payload["context"]
            signals[payload["seq"]] = payload
    assert said == []
    return signals, candles


@pytest.mark.parametrize("exchange", sorted(DIALECTS.keys() & CODECS.keys()))
async def test_a_signal_can_be_reproduced_from_its_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: str
) -> None:
    monkeypatch.setattr(recording, "FUNDING_POLL_S", 0.1)
    monkeypatch.setattr(CODECS[exchange], "request_spacing_s", 0.02)
    native = DIALECTS[exchange].natives[0]
    tape = tape_from("synthetic", native, seed=4, begin_ns=BEGIN_NS)
    emulator = Emulator({native: tape}, exchange=exchange, start_ns=START_NS, speed=600)
    port = await emulator.start()
    live = Live()
    try:
        await recorded(tmp_path, exchange, live, emulator, port)
    finally:
        await emulator.stop()
    signals, candles = played(tmp_path, exchange)
    common = {seq: live.signals[seq] for seq in signals if seq in live.signals}
    assert len(common) >= 18
    assert signals.keys() - common.keys() <= {max(signals)}
    assert {seq: signals[seq] for seq in common} == common
    assert {signal["kind"] for signal in common.values()} == {"signal"}
    assert {close: candles[close] for close in live.candles.keys() & candles.keys()}.items() <= live.candles.items()
    assert len(live.candles.keys() & candles.keys()) >= 18


async def test_a_recording_says_what_it_holds(tmp_path: Path) -> None:
    tape = tape_from("synthetic", "BTCUSDT", seed=4, begin_ns=BEGIN_NS)
    emulator = Emulator({"BTCUSDT": tape}, start_ns=START_NS, speed=60)
    port = await emulator.start()
    urls = {"ws_url": f"ws://127.0.0.1:{port}", "rest_url": f"http://127.0.0.1:{port}"}
    stop = asyncio.Event()
    task = asyncio.create_task(
        record(
            tmp_path, exchange="binance", symbols=["BTC/USDT:USDT"], specs=[MINUTE], max_bytes=1 << 28, stop=stop,
            **urls,
        )
    )  # fmt: skip
    try:
        await until(lambda: emulator.venue.frames > 50)
        (path,) = tapes.find([tmp_path]).recordings
        await until(lambda: any(record.entry is Entry.FRAME for _, record in play([path], lambda _: None)))
        await emulator.cut()
        await until(lambda: emulator.venue.requests["websocket"] == 2)
        with pytest.raises(RequestRefused, match="XRP/USDT:USDT"):
            await record(
                tmp_path, exchange="binance", symbols=["XRP/USDT:USDT"], specs=[], max_bytes=1, stop=stop, **urls
            )
    finally:
        stop.set()
        written = await task
        await emulator.stop()
    header, records = read_header(path), [record for _, record in play([path], pytest.fail)]
    assert [(m.symbol, m.native) for m in header.markets] == [("BTC/USDT:USDT", "BTCUSDT")]
    assert abs(header.run_ns + header.exchange_ahead_ns - START_NS) < 10 * 10**9
    assert records[0].entry is Entry.FUNDING
    assert written == (len(records), 1, path.stat().st_size)
    edges = [(record.lane, record.entry) for record in records if record.entry is not Entry.FRAME][1:]
    whole = (Entry.OPENED, Entry.CONFIRMED, Entry.ENDED)
    assert edges[:3] == [(1, entry) for entry in whole]
    assert edges[3][1] is Entry.OPENED
    assert edges[-1] == (edges[3][0], Entry.ENDED)
    assert records[-1].payload == b"stopped"


async def test_a_full_disk_ends_the_recording_with_a_word(tmp_path: Path) -> None:
    tape = tape_from("synthetic", "BTCUSDT", seed=4, begin_ns=BEGIN_NS)
    emulator = Emulator({"BTCUSDT": tape}, start_ns=START_NS, speed=60)
    port = await emulator.start()
    urls = {"ws_url": f"ws://127.0.0.1:{port}", "rest_url": f"http://127.0.0.1:{port}"}
    (tmp_path / "file").write_text("")
    try:
        with pytest.raises(OSError, match="file"):
            await record(
                tmp_path / "file", exchange="binance", symbols=["BTC/USDT:USDT"], specs=[MINUTE], max_bytes=1 << 28,
                stop=asyncio.Event(), **urls,
            )  # fmt: skip
    finally:
        await emulator.stop()


def test_tapes_are_found_in_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.gz", "a.gz"):
        (tmp_path / name).write_text("1 {}\n")
    found = tapes.find([tmp_path / "*.gz"])
    assert (found.recordings, found.exchange, found.specs) == ([], None, [])
    assert found.others == [tmp_path / "a.gz", tmp_path / "b.gz"]
    for path, said in ((tmp_path, "no recording"), (tmp_path / "x*", "nothing is called"), (tmp_path / "x", "No such")):
        with pytest.raises(TapeError, match=said):
            tapes.find([path])
