"""Record what an exchange sends, frame by frame as it came, and the funding it settled meanwhile, for later replays."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec
import structlog

from daemon import clock
from feeds.errors import RemoteError, RequestRefused
from feeds.events import Entry, Event
from feeds.exchanges import CLOSED, CODECS, groups_of
from feeds.history import History, open_history
from feeds.market import NS_PER_DAY, CandleSpec, Market
from feeds.recording import Funding, Header, Record, Recorder
from feeds.runner import FeedRunner
from inference.funding import FundingBook

FLUSH_S = 1.0
"""What a kill may lose at most."""
FUNDING_POLL_S = 10.0
"""How often the exchange's clock is asked whether funding has been settled."""
_FUNDING_BEFORE_NS = 2 * NS_PER_DAY
"""How much older than the recording the funding begins: enough to know its interval."""


class Written(NamedTuple):
    """What a recording amounts to."""

    entries: int
    files: int
    bytes: int


class _Deaf:
    """A sink that keeps nothing: a recording is made before frames are understood."""

    def connected(self) -> None:
        pass

    def lost(self, reason: str) -> None:
        pass

    def interrupted(self) -> None:
        pass

    def rolled_over(self, lost: int) -> None:
        pass

    def events(self, events: list[Event]) -> None:
        pass


async def record(
    folder: Path,
    *,
    exchange: str,
    symbols: list[str],
    specs: list[CandleSpec],
    max_bytes: int,
    ws_url: str | None = None,
    rest_url: str | None = None,
    proxy: str | None = None,
    stop: asyncio.Event,
) -> Written:
    """Write all frames of the markets' streams to files in `folder`, at most `max_bytes` of them, until `stop`.

    Raises:
        RequestRefused: the exchange has no such market, or is no more and `ws_url` names none in its place.
        RemoteError: what it has, or its clock, cannot be had.
        OSError: the files cannot be written.

    """
    if exchange in CLOSED and ws_url is None:
        raise RequestRefused(f"{CLOSED[exchange]}: --ws-url must name a server that speaks its protocol")
    kind, log = CODECS[exchange], structlog.get_logger().bind(exchange=exchange)
    history = open_history(exchange, rest_url, proxy=proxy)
    try:
        markets = await _chosen(history, exchange, symbols)
        wanted = dict.fromkeys(symbols, specs)
        groups = groups_of(kind, markets, wanted)
        ahead_ns = await history.time_ns() - clock.now_ns()
        header = Header(
            exchange=exchange,
            run_ns=clock.now_ns(),
            exchange_ahead_ns=ahead_ns,
            wires=tuple(map(tuple, groups)),
            specs=tuple(spec.text for spec in specs),
        )
        deleted = partial(_say_deleted, log)
        with Recorder(folder, header, max_bytes=max_bytes, deleted=deleted) as recorder:
            books = {market.symbol: FundingBook() for market in markets}
            await _note_funding(recorder, history, markets, books)
            runners = [
                FeedRunner(
                    codec_factory=partial(kind, group, wanted),
                    url=kind(group, wanted).url(ws_url),
                    sink=_Deaf(),
                    now_ns=clock.now_ns,
                    rng=clock.rng(),
                    log=log,
                    tap=_tap(recorder, wire),
                    proxy=proxy,
                )
                for wire, group in enumerate(groups)
            ]
            await _run(runners, _flush(recorder), _keep_funding(recorder, history, markets, books), stop=stop)
    finally:
        await history.aclose()
    return Written(recorder.entries, recorder.files, recorder.bytes)


async def _run(runners: list[FeedRunner], *keepers: Coroutine[Any, Any, NoReturn], stop: asyncio.Event) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(keeper) for keeper in keepers]
            await asyncio.gather(*(group.create_task(runner.run(stop)) for runner in runners))
            for task in keeping:
                task.cancel()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _chosen(history: History, exchange: str, symbols: list[str]) -> list[Market]:
    markets = await history.markets()
    unknown = [symbol for symbol in symbols if symbol not in markets]
    if unknown:
        raise RequestRefused(f"{exchange} trades no {', '.join(unknown)}")
    return [markets[symbol] for symbol in symbols]


def _tap(recorder: Recorder, wire: int) -> Callable[[Entry, int, int, bytes], None]:
    def tap(entry: Entry, lane: int, time_ns: int, payload: bytes) -> None:
        recorder.write(Record(time_ns, wire, lane, entry, payload))

    return tap


def _say_deleted(log: structlog.typing.FilteringBoundLogger, path: Path) -> None:
    log.warning("recording_deleted", file=path.name, reason="the recordings had reached their bound")


async def _flush(recorder: Recorder) -> NoReturn:
    while True:
        await asyncio.sleep(FLUSH_S)
        recorder.flush()


async def _keep_funding(
    recorder: Recorder, history: History, markets: list[Market], books: dict[str, FundingBook]
) -> NoReturn:
    """Note what is settled; while the exchange cannot be asked, what is due waits."""
    log = structlog.get_logger()
    while True:
        await asyncio.sleep(FUNDING_POLL_S)
        try:
            await _note_funding(recorder, history, markets, books)
        except RemoteError as error:
            log.warning("funding_unknown", reason=str(error))


async def _note_funding(
    recorder: Recorder, history: History, markets: list[Market], books: dict[str, FundingBook]
) -> None:
    now_ns = await history.time_ns()
    for market in markets:
        book = books[market.symbol]
        if book.asked_at_ns >= book.due_ns(now_ns):
            continue
        start_ns = (book.newest_ns or now_ns - _FUNDING_BEFORE_NS) + 1
        settled = [(one.time_ns, one.rate) for one in await history.funding(market, start_ns=start_ns)]
        book.extend(settled, asked_at_ns=now_ns)
        payload = msgspec.json.encode(Funding(market.symbol, now_ns, settled))
        recorder.write(Record(clock.now_ns(), 0, 0, Entry.FUNDING, payload))
