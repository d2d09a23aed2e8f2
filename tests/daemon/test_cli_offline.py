"""Commands on tapes, candles and models, as a user gives them."""

import contextlib
import itertools
import json
import pathlib
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon.test_cli import LSTMD, WAIT_S, environment, lstmd
from tests.data import shared

TAPE = "trades/binance_um_APEUSDT-aggTrades-2024-10-18.zip"


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


@contextlib.contextmanager
def emulated(*args: str) -> Iterator[str]:
    """Run `lstmd emulate`; yield its address without the scheme."""
    command = [*LSTMD, "emulate", "--port", "0", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert 'ws_url = "ws://127.0.0.1:' in line
        yield line.rpartition("://")[2].strip().strip('"')
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def test_emulate_serves_an_exchange_until_it_is_told_to_stop() -> None:
    with emulated("--speed", "60", "--tape", "XRPUSDT=synthetic", "--history-h", "2") as where:
        rows = get(f"http://{where}/fapi/v1/klines?symbol=XRPUSDT&interval=1m&limit=500")
    assert 115 <= len(rows) <= 121


def test_what_record_wrote_replay_reads(tmp_path: pathlib.Path) -> None:
    tape = tmp_path / "frames"
    with emulated("--speed", "120", "--tape", "XRPUSDT=synthetic") as where:
        urls = ("--ws-url", f"ws://{where}", "--rest-url", f"http://{where}")
        done = lstmd("record", str(tape), "--symbol", "XRP/USDT:USDT", *urls, "--seconds", "4", "--json")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert written["entries"] > 20
    assert (written["folder"], written["files"]) == (str(tape), 1)
    done = lstmd("replay", str(tape), "--kind", "candle", "--candles", "30s")
    assert done.returncode == 0, done.stderr
    named = lstmd(
        "replay", str(tape / "binance-*"), "--symbol", "XRP/USDT:USDT", "--kind", "candle", "--candles", "30s"
    )
    assert named.stdout == done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) >= 2
    assert {line["topic"] for line in lines} == {"lstmd/binance/XRP-USDT-PERP/30s/candle"}
    times = [(line["payload"]["open_time"], line["payload"]["close_time"]) for line in lines]
    assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(times))


def test_record_refuses_a_market_that_is_not_traded(tmp_path: pathlib.Path) -> None:
    with emulated("--tape", "XRPUSDT=synthetic") as where:
        urls = ("--ws-url", f"ws://{where}", "--rest-url", f"http://{where}")
        done = lstmd("record", str(tmp_path / "x.gz"), "--symbol", "BTC/USDT:USDT", *urls)
    assert done.returncode == 78
    assert "BTC/USDT:USDT" in done.stderr


def test_a_replay_is_the_same_to_the_byte_each_time(tmp_path: pathlib.Path) -> None:
    tape = str(shared(TAPE))
    outputs = []
    for name in ("one", "two"):
        done = lstmd("replay", tape, "--symbol", "APE/USDT:USDT", "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        outputs.append((tmp_path / name).read_bytes())
    assert outputs[0] == outputs[1]
    seqs = [json.loads(line)["payload"]["seq"] for line in outputs[0].splitlines()]
    assert len(seqs) > 1000
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--symbol", "APE"), "--symbol"),
        (("--symbol", "APE/USDT:USDT", "--candles", "5s"), "--kind candle gives candles of any spec"),
        (("--symbol", "APE/USDT:USDT", "--candles", "7x"), "no candle spec"),
        (("--symbol", "APE/USDT:USDT", "--revision", "/no/such/file.json"), "--revision"),
        (("--symbol", "APE/USDT:USDT", "--kind", "nothing"), "--kind"),
        (("--symbol", "APE/USDT:USDT", "--exchange", "nowhere"), "--exchange"),
    ],
)
def test_replay_says_what_is_wrong_with_its_options(args: tuple[str, ...], said: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_text("")
    done = lstmd("replay", str(tmp_path / "x"), *args)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_replay_refuses_what_is_no_tape(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_text("nothing\n")
    for name in ("x", "absent"):
        done = lstmd("replay", str(tmp_path / name), "--symbol", "APE/USDT:USDT")
        assert done.returncode == 1
        assert name in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("tape", ["BTCUSDT", "BTCUSDT=/no/such/file.zip"])
def test_emulate_refuses_a_tape_that_is_none(tape: str) -> None:
    done = lstmd("emulate", "--tape", tape, "--port", "0")
    assert done.returncode == 2
    assert "--tape" in done.stderr


def test_emulate_refuses_an_exchange_that_it_cannot_be() -> None:
    done = lstmd("emulate", "--exchange", "nowhere", "--port", "0")
    assert done.returncode == 2
    assert "--exchange" in done.stderr
    assert "binance" in done.stderr


def test_history_says_what_it_wrote_and_what_is_wrong(tmp_path: pathlib.Path) -> None:
    with emulated("--tape", "XRPUSDT=synthetic", "--history-h", "30") as where:
        asked = ("history", "--symbol", "XRP/USDT:USDT", "--out", str(tmp_path / "x"), "--rest-url", f"http://{where}")
        done = lstmd(*asked, "--since", "2025-01-06T12:00+02:00", "--until", "2025-01-07", "--candles", "5m")
        assert done.returncode == 0, done.stderr
        names = [f"binance_XRP-USDT-PERP_{kind}.parquet" for kind in ("5m", "5m_mark", "funding")]
        begins, end = ["10:00", "10:00", "16:00"], "2025-01-07T00:00:00.000Z"
        counts = [168, 168, 1]  # the settlement at midnight is not before the end
        ends = [end, end, "2025-01-06T16:00:00.000Z"]
        assert done.stdout.splitlines() == [
            f"{tmp_path / 'x' / name}: {count} rows, 2025-01-06T{begin}:00.000Z to {last}"
            for name, count, begin, last in zip(names, counts, begins, ends, strict=True)
        ]
        assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [*names, "manifest.json"]
        assert lstmd(*asked, "--since", "soon").returncode == 2
        assert lstmd(*asked, "--since", "2025-01-06", "--until", "2025-01-06").returncode == 2
        done = lstmd(*asked, "--since", "2025-01-06", "--candles", "5s")
        assert done.returncode == 78
        assert "5s" in done.stderr
        done = lstmd(*asked, "--since", "2026-01-06")
        assert done.returncode == 1
        assert "has no 1m candles of XRP/USDT:USDT" in done.stderr


def test_train_refuses_what_is_no_candles(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.parquet").write_text("nothing")
    done = lstmd("train", "--candles", str(tmp_path / "x.parquet"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.startswith("lstmd: ")
    assert "Traceback" not in done.stderr


def test_evaluate_refuses_what_is_no_day_and_no_candles(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.parquet").write_text("nothing")
    assert lstmd("evaluate", "--candles", str(tmp_path / "x.parquet"), "--since", "soon").returncode == 2
    done = lstmd("evaluate", "--candles", str(tmp_path / "x.parquet"))
    assert done.returncode == 1
    assert done.stderr.startswith("lstmd: ")


def test_calibrate_writes_the_revision_it_prints(tmp_path: pathlib.Path) -> None:
    candles = str(shared("ohlcv/bybit_linear/BTCUSDT_5m_2025-09_2026-01.parquet"))
    out = tmp_path / "revision.json"
    done = lstmd("calibrate", "--candles", candles, "--day", "2026-01-10", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    revision = json.loads(done.stdout)
    assert revision == json.loads(out.read_text())
    assert (revision["day"], revision["days"], revision["days_found"]) == ("2026-01-10", 7, 7)
    assert len(revision["calibration"]["5m"]) == 4
    assert lstmd("calibrate", "--candles", candles, "--day", "soon").returncode == 2


def test_train_looks_for_leaks_when_asked() -> None:
    candles = str(shared("ohlcv/binance_um/BTCUSDT_1m_2025-05_2025-06.parquet"))
    done = lstmd("train", "--candles", candles, "--check-leaks", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["sound"]
    assert found["real"]["truncation_differs"] == 0
    assert found["planted"]["skill_pct"] > 20
    assert lstmd("train", "--candles", candles).returncode == 2
