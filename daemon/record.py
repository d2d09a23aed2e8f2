"""Record what an exchange sends, frame by frame as it came, for later replays."""

import asyncio
from pathlib import Path

import structlog

from daemon import clock
from feeds.capture import Recorder
from feeds.errors import RequestRefused
from feeds.events import Event
from feeds.exchanges import CODECS
from feeds.history import open_history
from feeds.market import CandleSpec
from feeds.runner import FeedRunner


class _Deaf:
    """A sink that keeps nothing: a recording is made before frames are understood."""

    def connected(self) -> None:
        pass

    def lost(self, reason: str) -> None:
        pass

    def events(self, events: list[Event]) -> None:
        pass


async def record(
    path: Path,
    *,
    exchange: str,
    symbols: list[str],
    specs: list[CandleSpec],
    ws_url: str | None,
    rest_url: str | None,
    stop: asyncio.Event,
) -> int:
    """Write all frames of the markets' streams to `path` until `stop`; return how many.

    Raises:
        RequestRefused: the exchange has no such market.
        RemoteError: its list of markets cannot be had.

    """
    history = open_history(exchange, rest_url)
    try:
        markets = await history.markets()
    finally:
        await history.aclose()
    unknown = [symbol for symbol in symbols if symbol not in markets]
    if unknown:
        raise RequestRefused(f"{exchange} trades no {', '.join(unknown)}")
    chosen = [markets[symbol] for symbol in symbols]
    frames = 0
    with Recorder(path) as recorder:

        def keep(receive_time_ns: int, frame: bytes) -> None:
            nonlocal frames
            frames += 1
            recorder.write(receive_time_ns, _as_it_came(frame))

        kind = CODECS[exchange]
        wanted = dict.fromkeys(symbols, specs)
        runner = FeedRunner(
            codec_factory=lambda: kind(chosen, wanted),
            url=kind(chosen, wanted).url(ws_url),
            sink=_Deaf(),
            now_ns=clock.now_ns,
            rng=clock.rng(),
            log=structlog.get_logger().bind(exchange=exchange),
            tap=keep,
        )
        await runner.run(stop)
    return frames


def _as_it_came(frame: bytes) -> str | bytes:
    """Keep text readable; what is not UTF-8 is kept as bytes."""
    try:
        return frame.decode()
    except UnicodeDecodeError:
        return frame
