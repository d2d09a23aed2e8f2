"""The whole daemon: a real day, a real broker, kills, cuts and restarts; and what an operator's mistakes get."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.line import Cause
from daemon.replay import Replay
from daemon.topics import rfc3339
from feeds.capture import frames_from_trades
from feeds.market import CandleSpec, Market
from inference.artifact import Artifact, save
from inference.engine import Model
from inference.signals import Rules
from tests.daemon import brokers
from tests.daemon.brokers import Mosquitto, running
from tests.daemon.daemons import Daemon, Follower, Manager, ape_emulator, config_text, following, until
from tests.daemon.lines import new_line, small_artifact
from tests.daemon.tapes import APE, ape_trades, folded

WAIT_S = 180
SIGNALS = f"lstmd/binance/{APE.slug}/1m/signal"


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def saved(artifact: Artifact, folder: Path) -> tuple[Path, Model]:
    save(artifact, folder)
    return folder, Model(artifact, Rules())


def undisturbed(model: Model, hours: int, first: int, last: int) -> dict[int, str]:
    """Return what a line tells of the independent fold's candles."""
    spec = CandleSpec.parse("1m")
    line = new_line(model, listed_ape(hours), spec)
    line.begin(newest_seq=first, stream_seq=None, journal=[])
    for seq in range(line.next_seq, last + 1):
        line.offer(folded(hours, "1m")[seq], Cause(1, 2))
    return {d.seq: json.dumps(json.loads(d.identity), sort_keys=True) for d in line.take_work().drafts}


def listed_ape(hours: int) -> Market:
    return msgspec.structs.replace(APE, listed_at_ns=ape_trades(hours)[0].time_ms * 1_000_000)


async def ask(follower: Follower, daemon: Daemon, command: str, **request: Any) -> dict[str, Any]:
    """Ask over MQTT until answered: what is asked while the daemon is not listening is not answered."""
    topic, answer = f"lstmd/request/{command}", f"lstmd/response/{command}"
    follower.newest.pop(answer, None)
    while answer not in follower.newest:
        daemon.alive()
        async with follower.link_for("asks").connect() as connection:
            await connection.publish(topic, json.dumps({"transaction": "t", **request}).encode())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(until(lambda: answer in follower.newest, daemon), 2)
    assert follower.newest[answer]["transaction"] == "t"
    return follower.newest[answer]


async def test_a_day_with_kills_cuts_and_a_broker_restart_does_not_show(tmp_path: Path, manager: Manager) -> None:
    folder, model = saved(small_artifact("1m", warmup=64, epoch=720), tmp_path / "artifact")
    emulator = ape_emulator(hours=16, history_s=2 * 3600, speed=600)
    broker = Mosquitto(tmp_path)
    await broker.start()
    port = await emulator.start()
    text = config_text(tmp_path, mqtt=broker.url, port=port, artifact=folder)
    daemon = Daemon(tmp_path, text, environment=manager.environment)
    try:
        async with asyncio.timeout(WAIT_S), following(broker.url) as follower, daemon:
            await until(lambda: follower.count() >= 15, daemon)
            assert "READY=1" in manager.heard
            assert follower.newest[f"lstmd/binance/{APE.slug}/availability"]["state"] in ("online", "stale", "tainted")
            await daemon.end(signal.SIGKILL)
            await daemon.start()
            await until(lambda: follower.states[-1] == "online" and follower.count() >= 60, daemon)
            await emulator.cut()
            done = follower.count()
            await until(lambda: follower.count() >= done + 10, daemon)
            known = sorted(follower.signals["1m"])
            connections = follower.connections
            await broker.kill()
            await asyncio.sleep(1)  # something is to happen meanwhile
            await broker.start()
            await until(lambda: follower.connections > connections, daemon)
            done = follower.count()
            await until(lambda: follower.count() >= done + 10, daemon)
            # What the broker had taken and not yet passed on died with it: whoever misses it asks for it.
            answer = await ask(follower, daemon, "replay", topic=SIGNALS, from_seq=known[-1])
            assert answer["ok"]
            assert answer["data"]["messages"] >= 1
            await until(lambda: whole(follower), daemon)
            status = await ask(follower, daemon, "status")
            assert status["data"]["info"]["model"] == model.id
            assert status["data"]["health"]["feeds"]["0 binance"]["live"] == 1
            await until(lambda: f"lstmd/binance/{APE.slug}/1m/live" in follower.newest, daemon)
            assert await daemon.end() == 0, daemon.log.read_text()[-3000:]
            await brokers.until(lambda: follower.states[-1] == "offline")
            assert follower.newest[f"lstmd/binance/{APE.slug}/availability"]["state"] == "offline"
    finally:
        await emulator.stop()
        await broker.stop()
    told = follower.signals["1m"]
    assert told == undisturbed(model, 16, min(told), max(told))
    assert whole(follower)
    assert follower.order["1m"] == sorted(follower.order["1m"])
    assert {"offline", "online"} == set(follower.states)
    assert any(context.get("late") for context in follower.contexts)
    assert any(context.get("latency_us") for context in follower.contexts)
    last = follower.newest[f"lstmd/binance/{APE.slug}/1m/last"]
    assert last["seq"] == max(told)
    fields = ("open", "high", "low", "close", "volume")
    official = {candle.close_time_ns: candle for candle in folded(16, "1m").values()}
    seen = follower.candles["1m"]
    assert len(seen) >= 30
    by_time = {rfc3339(ns): candle for ns, candle in official.items()}
    assert all(c[f] == getattr(by_time[c["close_time"]], f) for c in seen for f in fields)
    heard = manager.heard
    assert heard.count("READY=1") == 2
    assert heard.count("WATCHDOG=1") > 5
    assert heard[-1] == "STOPPING=1" or "STOPPING=1" in heard[-3:]
    assert all(json.loads(line)["event"] for line in daemon.log.read_text().splitlines())


def whole(follower: Follower) -> bool:
    """Tell whether there is a message for each ordinal from the first to the last."""
    seqs = sorted(follower.signals["1m"])
    return seqs == list(range(seqs[0], seqs[-1] + 1))


async def test_small_and_event_candles_are_made_whole_from_trades(tmp_path: Path) -> None:
    """There are no klines of them: after a start, a cut and a kill every missed trade is fetched and stitched in."""
    folder, model = saved(small_artifact("5s", "100t", warmup=16, epoch=720), tmp_path / "artifact")
    emulator = ape_emulator(hours=4, history_s=7200, speed=60)
    port = await emulator.start()
    try:
        async with asyncio.timeout(WAIT_S), running("mosquitto", tmp_path) as broker:
            text = config_text(tmp_path, mqtt=broker.url, port=port, artifact=folder, candles='["5s", "100t"]')
            daemon = Daemon(tmp_path, text)
            async with following(broker.url) as follower, daemon:
                await until(lambda: follower.count("5s") >= 20 and follower.count("100t") >= 20, daemon)
                await emulator.cut()
                done = follower.count("5s")
                await until(lambda: follower.count("5s") >= done + 40, daemon)
                await daemon.end(signal.SIGKILL)
                await daemon.start()
                done = follower.count("5s")
                await until(lambda: follower.count("5s") >= done + 60, daemon)
                assert await daemon.end() == 0
    finally:
        await emulator.stop()
    specs = [CandleSpec.parse(text) for text in ("5s", "100t")]
    replay = Replay(model, exchange="binance", symbols=[APE.symbol], specs=specs, base_topic="lstmd")
    reference: dict[str, dict[int, str]] = {"5s": {}, "100t": {}}
    for output in replay.run(frames_from_trades(APE.native, ape_trades(4))):
        if output.kind == "signal":
            payload = json.loads(output.payload)
            del payload["context"]
            reference[payload["spec"]][payload["seq"]] = json.dumps(payload, sort_keys=True)
    for spec, told in follower.signals.items():
        due = {seq: identity for seq, identity in reference[spec].items() if min(told) <= seq <= max(told)}
        signals = {seq: identity for seq, identity in told.items() if json.loads(identity)["kind"] == "signal"}
        assert signals == due
        assert follower.order[spec] == sorted(told)
        others = [json.loads(told[seq]) for seq in sorted(told.keys() - signals.keys())]
        begin = [("day", ["day_begins"]), ("gap", ["model_not_ready"])] if spec == "100t" else []
        assert [(other["kind"], other["reasons"]) for other in others] == begin


# ---- operator's faults


def run_until_it_ends(folder: Path, text: str) -> tuple[int, list[str]]:
    path = folder / "lstmd.toml"
    path.write_text(text)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LSTMD_")}
    command = (sys.executable, "-m", "daemon.cli", "run", "-c", str(path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False, env=environment)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    return done.returncode, lines


def free_port_text(folder: Path, **changes: Any) -> str:
    return config_text(folder, **{"mqtt": "mqtt://127.0.0.1:9", "port": 9, "artifact": "default", **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"candles": '["1m"]\nsymbls = ["X"]'}, "feeds[0].symbls"),
        ({"candles": '["4h"]'}, "feeds[0].candles[0]: artifact default serves 1m, 5m, not 4h"),
        ({"artifact": "/nowhere/at/all"}, "model.artifact: /nowhere/at/all/manifest.json: No such file or directory"),
        ({"candles": '["7m"]'}, "feeds[0].candles[0]: '7m': an interval"),
    ],
)
def test_a_configuration_that_cannot_be_is_78_and_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    code, lines = run_until_it_ends(tmp_path, free_port_text(tmp_path, **changes))
    assert code == 78
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert not (tmp_path / "state").exists(), "nothing was started"


def test_a_port_that_is_taken_is_78_and_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = free_port_text(tmp_path).replace("127.0.0.1:0", f"127.0.0.1:{port}")
        code, lines = run_until_it_ends(tmp_path, text)
        assert (code, len(lines)) == (78, 1), lines
        assert f"metrics.listen: cannot listen on 127.0.0.1:{port}" in lines[0]
        code, lines = run_until_it_ends(tmp_path, free_port_text(tmp_path, mqtt=f"embedded:{port}"))
        assert (code, len(lines)) == (78, 1), lines
        assert str(port) in lines[0]


async def test_a_broker_that_refuses_the_password_is_78_and_one_line(tmp_path: Path) -> None:
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed")
    passwords = tmp_path / "passwords"
    command = ("mosquitto_passwd", "-c", "-b", str(passwords), "lstmd", "right")
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=60)
    broker = Mosquitto(tmp_path, settings=f"allow_anonymous false\npassword_file {passwords}")
    await broker.start()
    try:
        text = free_port_text(tmp_path, mqtt=f'{broker.url}"\nusername = "lstmd"\npassword = "wrong')
        code, lines = await asyncio.to_thread(run_until_it_ends, tmp_path, text)
    finally:
        await broker.stop()
    assert (code, len(lines)) == (78, 1), lines
    assert f"127.0.0.1:{broker.port} refuses us" in lines[0]


async def test_a_symbol_that_is_not_traded_and_a_store_in_use_are_78_and_one_line(tmp_path: Path) -> None:
    folder, _ = saved(small_artifact("1m"), tmp_path / "artifact")
    emulator = ape_emulator(hours=4, history_s=7200, speed=60)
    port = await emulator.start()
    other = tmp_path / "other"
    other.mkdir()
    try:
        async with asyncio.timeout(WAIT_S), running("embedded", tmp_path) as broker:
            text = config_text(tmp_path, mqtt=broker.url, port=port, artifact=folder)
            wrong = text.replace(APE.symbol, "APPE/USDT:USDT")
            code, lines = await asyncio.to_thread(run_until_it_ends, other, wrong)
            assert (code, len(lines)) == (78, 1), lines
            assert "feeds[0].symbols[0]: binance trades no APPE/USDT:USDT; did you mean APE/USDT:USDT?" in lines[0]
            async with following(broker.url) as follower, Daemon(tmp_path, text) as daemon:
                await until(lambda: follower.states == ["offline", "online"], daemon)
                code, lines = await asyncio.to_thread(run_until_it_ends, other, text)
                assert (code, len(lines)) == (78, 1), lines
                assert "another lstmd is using it (process " in lines[0]
                daemon.alive()
                assert await daemon.end(signal.SIGINT) == 0
    finally:
        await emulator.stop()


async def test_a_disk_that_takes_no_more_ends_it_and_the_next_start_goes_on(tmp_path: Path) -> None:
    """Systemd starts it again, and once there is room nothing is lost: here the limit of a file's size is the disk."""
    folder, model = saved(small_artifact("1m", warmup=64, epoch=720), tmp_path / "artifact")
    emulator = ape_emulator(hours=16, history_s=7200, speed=600)
    port = await emulator.start()
    try:
        async with asyncio.timeout(WAIT_S), running("embedded", tmp_path) as broker, following(broker.url) as follower:
            daemon = Daemon(tmp_path, config_text(tmp_path, mqtt=broker.url, port=port, artifact=folder))
            async with daemon:
                await until(lambda: follower.count() >= 5, daemon)
                assert daemon.process is not None
                log = tmp_path / "state" / "lstmd.sqlite-wal"
                resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (log.stat().st_size + 3000,) * 2)
                assert await daemon.process.wait() == 1
                await brokers.until(lambda: follower.states[-1] == "offline")
                said = [json.loads(line) for line in daemon.log.read_text().splitlines() if line.startswith("{")]
                (failed,) = (line for line in said if line["event"] == "store_failed")
                assert (failed["reason"], failed["level"]) == ("disk I/O error", "critical")
                assert failed["store"] == str(tmp_path / "state" / "lstmd.sqlite")
                done = follower.count()
                await daemon.start()
                await until(lambda: follower.count() >= done + 20, daemon)
                assert await daemon.end() == 0
            assert follower.newest["lstmd/info"]["stores_set_aside"] == []
    finally:
        await emulator.stop()
    told = follower.signals["1m"]
    assert whole(follower), sorted(told)
    assert told == undisturbed(model, 16, min(told), max(told))


async def test_a_damaged_store_is_said_on_info_and_no_signal_is_missed(tmp_path: Path) -> None:
    folder, model = saved(small_artifact("1m", warmup=64, epoch=720), tmp_path / "artifact")
    emulator = ape_emulator(hours=16, history_s=7200, speed=600)
    port = await emulator.start()
    try:
        async with asyncio.timeout(WAIT_S), running("embedded", tmp_path) as broker, following(broker.url) as follower:
            daemon = Daemon(tmp_path, config_text(tmp_path, mqtt=broker.url, port=port, artifact=folder))
            async with daemon:
                await until(lambda: follower.count() >= 5, daemon)
                assert await daemon.end() == 0
                path = tmp_path / "state" / "lstmd.sqlite"
                with sqlite3.connect(path) as db:
                    (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name='journal'").fetchone()
                db.close()
                with path.open("r+b") as file:
                    file.seek(4096 * (root - 1))
                    file.write(b"\xa5" * 1000)
                done = follower.count()
                await daemon.start()
                await until(lambda: follower.count() >= done + 5, daemon)
                await until(lambda: bool(follower.newest["lstmd/info"]["stores_set_aside"]), daemon)
                assert await daemon.end() == 0
    finally:
        await emulator.stop()
    (name,) = follower.newest["lstmd/info"]["stores_set_aside"]
    assert (tmp_path / "state" / name).exists()
    assert '"event":"store_set_aside"' in daemon.log.read_text()
    told = follower.signals["1m"]
    assert whole(follower), sorted(told)
    assert told == undisturbed(model, 16, min(told), max(told))


async def test_a_crash_is_loud_and_says_goodbye(tmp_path: Path) -> None:
    """A bug of ours ends the daemon with a trace and an honest status; here: a store whose disk refuses."""
    folder, _ = saved(small_artifact("1m"), tmp_path / "artifact")
    emulator = ape_emulator(hours=4, history_s=7200, speed=600)
    port = await emulator.start()
    code = "import daemon.store, sys\n" + BREAKS + "from daemon.cli import main; sys.argv[0] = 'lstmd'; main()"
    path = tmp_path / "lstmd.toml"
    try:
        async with asyncio.timeout(WAIT_S), running("embedded", tmp_path) as broker, following(broker.url) as follower:
            path.write_text(config_text(tmp_path, mqtt=broker.url, port=port, artifact=folder))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", code, "run", "-c", str(path)), stderr=asyncio.subprocess.PIPE
            )
            _, said = await process.communicate()
            await brokers.until(lambda: follower.states[-1:] == ["offline"])
    finally:
        await emulator.stop()
    assert process.returncode == 1
    assert b"disk I/O error" in said
    assert follower.states[-2:] == ["online", "offline"]


BREAKS = """
import sqlite3
whole = daemon.store.Store.commit
def commit(self, lines, calls=[], **bounds):
    calls.append(1)
    if len(calls) > 5:
        raise sqlite3.OperationalError("disk I/O error")
    return whole(self, lines, **bounds)
daemon.store.Store.commit = commit
"""
