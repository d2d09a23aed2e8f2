"""Fetch an exchange's history into a folder: candles, candles of the mark price, settled funding, and a manifest.

What is on the disk decides what is asked for: a run that was killed goes on where it was, a later one adds what has
closed since. What the exchange lacks is listed in the manifest and asked for again by the next run, never filled.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from feeds.backoff import Backoff
from feeds.errors import RateLimited, RemoteError, RequestRefused
from feeds.history import PAGE_ROWS, History
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market
from training.folder import Entry, Folder, FolderError, Kind, absent, times_ms

TRIES_MAX = 10
"""Tries of one request before the run ends; the delays between them add up to a minute and a half at most."""
_TIME = pa.timestamp("ms", tz="UTC")
_PRICES = [(name, pa.float64()) for name in ("open", "high", "low", "close")]
_SCHEMAS = {
    Kind.CANDLES: pa.schema([("open_time", _TIME), *_PRICES, ("volume", pa.float64()), ("trades", pa.int64())]),
    Kind.MARK: pa.schema([("open_time", _TIME), *_PRICES]),
}
_FUNDING = pa.schema([("time", _TIME), ("funding_rate", pa.float64())])
_T = TypeVar("_T")


async def download(
    history: History,
    out: Path,
    *,
    symbols: Sequence[str],
    specs: Sequence[CandleSpec],
    since_ns: int,
    until_ns: int | None = None,
    rng: random.Random,
    progress: bool = False,
) -> list[Entry]:
    """Bring a folder up to date; return what it now holds of the markets asked for, as its manifest says.

    Per market and spec there are `exchange_MARKET_spec.parquet` and `exchange_MARKET_spec_mark.parquet`, per market
    `exchange_MARKET_funding.parquet`; mark and funding only where the exchange has them. A file has one span: what
    lies between candles on the disk and candles asked for is fetched too.

    Args:
        history: where to ask.
        out: folder; made if missing.
        symbols: ccxt unified symbols.
        specs: candle specs.
        since_ns: first moment wanted; a market that was listed later begins with its listing.
        until_ns: exclusive end; None for all that is final by the exchange's clock.
        rng: jitter of the delays between tries.
        progress: show a bar per file on standard error.

    Raises:
        RequestRefused: the exchange has no such market or spec.
        RemoteError: it failed too often in a row; what came until then is kept.
        FolderError: a file in the folder is in the way, or there are no candles at all.

    """
    if strange := [str(spec) for spec in specs if not spec.by_time]:
        raise RequestRefused(f"no exchange keeps candles of {', '.join(strange)}")
    console = Console(stderr=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not progress) as bar:
        folder = Folder(out)
        run = _Run(history, folder, rng, bar)
        markets = await run.patiently(history.markets)
        if unknown := [symbol for symbol in symbols if symbol not in markets]:
            raise RequestRefused(f"the exchange trades no {', '.join(unknown)}")
        final_ns = await run.patiently(history.time_ns) - history.settle_ns
        end_ns = final_ns if until_ns is None else min(until_ns, final_ns)
        entries = []
        for market in (markets[symbol] for symbol in symbols):
            for spec in specs:
                entries += [await run.candles(kind, market, spec, since_ns, end_ns) for kind in _SCHEMAS]
            entries.append(await run.funding(market, since_ns, end_ns))
    folder.close()
    return [entry for entry in entries if entry is not None]


@dataclass(frozen=True)
class _Run:
    history: History
    folder: Folder
    rng: random.Random
    bar: Progress

    async def candles(self, kind: Kind, market: Market, spec: CandleSpec, since_ns: int, end_ns: int) -> Entry | None:
        """Complete one file of candles, a page at a time."""
        schema = _SCHEMAS[kind]
        stem = f"{market.exchange}_{market.slug}_{spec}" + ("_mark" if kind is Kind.MARK else "")
        opens = times_ms(self.folder.rows(stem, schema)).tolist()
        step = spec.interval_ns // NS_PER_MS
        since = max(spec.open_of(since_ns + spec.interval_ns - 1), spec.open_of(market.listed_at_ns or 0)) // NS_PER_MS
        end = spec.open_of(end_ns) // NS_PER_MS
        wanted = absent(opens, min([since, *opens[:1]]), max([end, *(at + step for at in opens[-1:])]), step)
        await self._pages(stem, schema, kind, market, spec, [(a, b) for a, b in wanted if a < b])
        entry = self.folder.seal(stem, schema, kind, market, spec)
        if entry is None and kind is Kind.CANDLES:
            raise FolderError(f"{market.exchange} has no {spec} candles of {market.symbol} in that time")
        return entry

    async def _pages(
        self, stem: str, schema: pa.Schema, kind: Kind, market: Market, spec: CandleSpec, spans: list[tuple[int, int]]
    ) -> None:
        fetch = self.history.mark_candles if kind is Kind.MARK else self.history.candles
        step = spec.interval_ns // NS_PER_MS
        task = self.bar.add_task(stem, total=sum(b - a for a, b in spans) // step)
        for begin, end in spans:
            for at in range(begin, end, PAGE_ROWS * step):
                until = min(end, at + PAGE_ROWS * step)
                page = partial(fetch, market, spec, start_ns=at * NS_PER_MS, end_ns=until * NS_PER_MS)
                if got := await self.patiently(page):
                    self.folder.add(stem, _table(got, schema))
                self.bar.advance(task, (until - at) // step)

    async def funding(self, market: Market, since_ns: int, end_ns: int) -> Entry | None:
        """Complete the settled rates: a few a day, so they are asked for anew each time."""
        stem = f"{market.exchange}_{market.slug}_funding"
        had = times_ms(self.folder.rows(stem, _FUNDING)).tolist()
        start_ns = min([max(since_ns, market.listed_at_ns or 0), *(at * NS_PER_MS for at in had[:1])])
        got = await self.patiently(partial(self.history.funding, market, start_ns=start_ns))
        if fresh := [row for row in got if row.time_ns < end_ns]:
            times = [row.time_ns // NS_PER_MS for row in fresh]
            self.folder.add(stem, pa.table([times, [row.rate for row in fresh]], schema=_FUNDING))
        return self.folder.seal(stem, _FUNDING, Kind.FUNDING, market, None)

    async def patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask until there is an answer, as long as the exchange wants us to wait, `TRIES_MAX` times at most."""
        backoff = Backoff(self.rng, spacing_s=0.0)
        for _ in range(TRIES_MAX - 1):
            try:
                return await ask()
            except RemoteError as error:
                wait_s = backoff.delay_s(live_s=0.0, since_attempt_s=0.0)
                if isinstance(error, RateLimited):
                    wait_s = error.retry_after_s
                self.bar.console.print(f"again in {wait_s:.1f} s: {error}", soft_wrap=True)
            await asyncio.sleep(wait_s)
        return await ask()


def _table(candles: list[Candle], schema: pa.Schema) -> pa.Table:
    columns = [[candle.open_time_ns // NS_PER_MS for candle in candles]]
    columns += [[getattr(candle, name) for candle in candles] for name in schema.names[1:]]
    return pa.table(columns, schema=schema)
