"""Lines on standard error, read back from a process that wrote them."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

SETUP = "import logging, structlog\nfrom daemon import log_setup\n"


def lines_of(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    return done.stderr.splitlines()


def records(code: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(code)]


def test_a_line_is_an_object_with_event_level_time_and_what_was_bound() -> None:
    (record,) = records(
        "log_setup.configure()\n"
        "structlog.get_logger().bind(exchange='binance').info('feed_lost', market='BTC/USDT:USDT', after_s=1.5)"
    )
    time = record.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert record == {
        "event": "feed_lost",
        "level": "info",
        "exchange": "binance",
        "market": "BTC/USDT:USDT",
        "after_s": 1.5,
    }


def test_the_level_holds_and_can_be_changed_while_running() -> None:
    code = (
        "log_setup.configure(level='warning'); log = structlog.get_logger(); log.info('a'); log.warning('b')\n"
        "log_setup.set_level('debug'); log.debug('c')"
    )
    assert [record["event"] for record in records(code)] == ["b", "c"]


def test_libraries_come_in_from_warning_up() -> None:
    code = (
        "log_setup.configure()\nlog = logging.getLogger('ccxt.base')\n"
        "log.info('quiet')\nlog.warning('throttled %s', 3)\n"
        "try: 1 / 0\nexcept ZeroDivisionError: log.exception('broke')"
    )
    first, second = records(code)
    assert (first["event"], first["library"], first["message"]) == ("library_message", "ccxt.base", "throttled 3")
    assert second["level"] == "error"
    assert second["exception"][0]["exc_type"] == "ZeroDivisionError"


def test_values_that_json_does_not_know_are_written_as_text() -> None:
    (record,) = records(
        "import pathlib\nlog_setup.configure(); structlog.get_logger().info('x', at=pathlib.Path('/a'))"
    )
    assert record["at"] == "/a"


def test_people_get_plain_lines() -> None:
    (line,) = lines_of("log_setup.configure(format='console'); structlog.get_logger().info('feed_lost', n=1)")
    assert "feed_lost" in line
    assert "n=1" in line
    with pytest.raises(json.JSONDecodeError):
        json.loads(line)
