"""Logging: one JSON object a line on standard error, or coloured lines for people.

Every line has `event` (one name, snake case), `level`, `time` (RFC 3339 UTC, milliseconds) and what was bound, such as
`exchange` and `market`. What libraries log through the standard library comes in from WARNING up, as `library_message`.
"""

import datetime as dt
import logging
import sys
from typing import Any, Literal

import orjson
import structlog

from daemon import clock

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FormatName = Literal["json", "console"]


def configure(*, level: str = "info", format: FormatName = "json") -> None:  # noqa: A002 (the key's name)
    """Set up structlog and the standard library's root logger; may be called again to change either."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_time,
    ]
    factory: Any
    if format == "json":
        tail: list[structlog.typing.Processor] = [
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    else:
        tail = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), timestamp_key="time")]
        factory = structlog.PrintLoggerFactory(sys.stderr)
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=factory,
        cache_logger_on_first_use=False,  # a level set while running counts at once
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward(logging.WARNING)]
    root.setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Change the lowest level written; the format stays.

    Raises:
        KeyError: no such level.

    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]))


class _Forward(logging.Handler):
    """Hand a library's record to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno,
            "library_message",
            library=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info or None,
        )


def _add_time(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    now = dt.datetime.fromtimestamp(clock.now_ns() // 1_000_000 / 1000, dt.UTC)
    event["time"] = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def _to_json(event: structlog.typing.EventDict, **_kw: Any) -> bytes:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
