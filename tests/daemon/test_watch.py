"""The board keeps the newest of everything; a line and a table come of it; a real broker's messages reach both."""

import asyncio
import io
import json
import pathlib
from typing import Any

from rich.console import Console

from daemon import watch
from daemon.mqtt import MqttLink, Received
from tests.daemon.brokers import running, until

WAIT_S = 30
SIGNAL: dict[str, Any] = {
    "kind": "signal",
    "seq": 28815841,
    "close_time": "2024-10-18T10:01:00.000Z",
    "side": "long",
    "p_short": 0.2,
    "p_flat": 0.3,
    "p_long": 0.5,
    "edge_bps": 1.25,
    "expected_move_bps": 13.0,
    "reference_price": 63000.5,
}
TOPIC = "lstmd/binance/BTC-USDT-PERP/1m"


def received(topic: str, payload: object) -> Received:
    return Received(topic, json.dumps(payload).encode(), False)


def drawn(board: watch.Board) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(board.table())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_durable_signal_is_a_line() -> None:
    board = watch.Board("lstmd")
    text = board.take(received(f"{TOPIC}/signal", SIGNAL))
    assert text is not None
    assert " ".join(text.split()) == (
        "10:01:00 BTC-USDT-PERP 1m seq 28815841 long short 0.200 flat 0.300 long 0.500 "
        "edge +1.2 bps move +13.0 bps at 63000.5"
    )
    assert board.markets == {"BTC-USDT-PERP"}
    assert board.signals == 1


def test_a_void_is_a_line_with_its_reasons() -> None:
    void = {"kind": "void", "seq": 5, "close_time": "2024-10-18T10:01:00.000Z", "reasons": ["no_candle"]}
    text = watch.Board("lstmd").take(received(f"{TOPIC}/signal", void))
    assert text is not None
    assert text.endswith("seq 5 void: no_candle")


def test_what_is_no_durable_signal_is_no_line() -> None:
    board = watch.Board("lstmd")
    for topic in (f"{TOPIC}/last", f"{TOPIC}/candle", "lstmd/health", "elsewhere/x"):
        assert board.take(received(topic, SIGNAL)) is None
    assert board.signals == 0


def test_what_is_no_object_is_passed_over() -> None:
    board = watch.Board("lstmd")
    for payload in (b"", b"{", b"\xff", b"[1]"):
        assert board.take(Received(f"{TOPIC}/signal", payload, False)) is None


def test_the_table_shows_status_state_signal_and_the_forming_candle() -> None:
    board = watch.Board("lstmd")
    board.take(received("lstmd/status", {"state": "online"}))
    board.take(received("lstmd/binance/BTC-USDT-PERP/availability", {"state": "tainted"}))
    board.take(received(f"{TOPIC}/last", SIGNAL))
    board.take(received(f"{TOPIC}/live", {"side": "short", "p_short": 0.4, "p_flat": 0.5, "p_long": 0.1}))
    text = drawn(board)
    for part in (
        "lstmd: online",
        "BTC-USDT-PERP",
        "tainted",
        "10:01:00",
        "63000.5",
        "long",
        "20/30/50",
        "+1.2",
        "40/50/10",
    ):
        assert part in text


def test_rows_have_a_bound() -> None:
    board = watch.Board("lstmd")
    for number in range(watch.MARKETS_MAX + 3):
        board.take(received(f"lstmd/binance/M{number}-USDT-PERP/1m/signal", SIGNAL))
    assert len(board.markets) == watch.MARKETS_MAX
    assert "3 signals of further markets not shown" in drawn(board)


async def test_lines_come_from_a_real_broker_and_go_on_after_its_restart(tmp_path: pathlib.Path) -> None:
    output, stop = io.StringIO(), asyncio.Event()
    board = watch.Board("lstmd")
    async with running("embedded", tmp_path) as broker, asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        console = Console(file=output, width=200)
        group.create_task(watch.show(MqttLink(broker.url, client_id="r"), board, console=console, stop=stop))
        for expected in (1, 2):
            while board.signals < expected:
                async with MqttLink(broker.url, client_id="w").connect() as connection:
                    await connection.publish(f"{TOPIC}/signal", json.dumps(SIGNAL).encode())
                await asyncio.sleep(0.05)
            if expected == 1:
                await broker.stop()
                await broker.start()
        stop.set()
    text = output.getvalue()
    assert text.count("no broker: ") == 1
    assert text.count("connected again") == 1
    assert text.count(" seq 28815841 ") == board.signals >= 2


async def test_a_terminal_gets_a_table(tmp_path: pathlib.Path) -> None:
    output, stop = io.StringIO(), asyncio.Event()
    board = watch.Board("lstmd")
    async with running("embedded", tmp_path) as broker, asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        console = Console(file=output, width=200, force_terminal=True)
        group.create_task(watch.show(MqttLink(broker.url, client_id="r"), board, console=console, stop=stop))
        async with MqttLink(broker.url, client_id="w").connect() as connection:
            await connection.publish(f"{TOPIC}/last", json.dumps(SIGNAL).encode(), retain=True)
        await until(lambda: "63000.5" in output.getvalue())
        stop.set()


async def test_dump_writes_each_message_as_a_json_line(tmp_path: pathlib.Path) -> None:
    output, stop = io.StringIO(), asyncio.Event()
    async with running("embedded", tmp_path) as broker, asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        async with MqttLink(broker.url, client_id="w").connect() as connection:
            await connection.publish("lstmd/status", b'{"state":"online"}', retain=True)
        link = MqttLink(broker.url, client_id="r")
        group.create_task(watch.dump(link, "lstmd", console=Console(file=output), stop=stop))
        await until(lambda: "\n" in output.getvalue())
        stop.set()
    assert json.loads(output.getvalue()) == {"topic": "lstmd/status", "retained": True, "payload": {"state": "online"}}
