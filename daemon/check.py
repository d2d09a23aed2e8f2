"""What only the parts themselves can say about a configuration: symbols, candle specs, exchanges, the artifact's fit.

Nothing is started and nobody is asked over the network.
"""

from collections.abc import Iterator
from pathlib import Path

from config.load import ConfigError, Problem
from config.schema import Config, Feed
from feeds.errors import RequestRefused
from feeds.exchanges import CLOSED
from feeds.history.ccxt import PREFIX
from feeds.kinds import Kind, kind_of
from feeds.market import NS_PER_S, CandleSpec, slug_of
from inference import artifact as artifacts
from inference.artifact import Artifact, ArtifactError, Manifest
from inference.guards import candles_a_day
from inference.recalibrate import DAYS

MINUTE_NS = 60 * NS_PER_S


def check(config: Config) -> Artifact:
    """Check a configuration as far as that goes offline, and return its artifact.

    Raises:
        ConfigError: holds all faults found.

    """
    problems = list(_feeds(config))
    try:
        artifact = artifacts.load(artifacts.resolve(str(Path(config.model.artifact).expanduser())))
    except ArtifactError as error:
        raise ConfigError([*problems, Problem("model.artifact", str(error))]) from None
    known = {problem.key for problem in problems}
    problems += (problem for problem in _fit(config, artifact) if problem.key not in known)
    if problems:
        raise ConfigError(problems)
    return artifact


def _feeds(config: Config) -> Iterator[Problem]:
    for number, feed in enumerate(config.feeds):
        kind = None
        try:
            kind = kind_of(feed.exchange)
        except RequestRefused as error:
            yield Problem(f"feeds[{number}].exchange", str(error))
        if feed.redundant and feed.exchange.startswith(PREFIX):
            yield Problem(f"feeds[{number}].redundant", "through ccxt there is one connection")
        yield from _addresses(number, feed)
        yield from _symbols(number, feed, "symbols")
        yield from _symbols(number, feed, "calibrate_on")
        yield from _specs(number, feed, kind)


def _addresses(number: int, feed: Feed) -> Iterator[Problem]:
    """Find the addresses that an exchange lacks which is no more: they are those of a server in its place."""
    if feed.exchange not in CLOSED:
        return
    for name in ("ws_url", "rest_url"):
        if getattr(feed, name) is None:
            yield Problem(f"feeds[{number}].{name}", f"{CLOSED[feed.exchange]}: name a server that speaks its protocol")


def _symbols(number: int, feed: Feed, name: str) -> Iterator[Problem]:
    for at, symbol in enumerate(getattr(feed, name)):
        if symbol == "all" or set("*?[") & set(symbol):
            continue
        try:
            slug_of(symbol)
        except ValueError as error:
            yield Problem(f"feeds[{number}].{name}[{at}]", str(error))


def _specs(number: int, feed: Feed, kind: Kind | None) -> Iterator[Problem]:
    lengths: dict[int, str] = {}
    for at, text in enumerate(feed.candles):
        key = f"feeds[{number}].candles[{at}]"
        try:
            spec = CandleSpec.parse(text)
        except ValueError as error:
            yield Problem(key, str(error))
            continue
        if spec.by_time and lengths.setdefault(spec.interval_ns, text) != text:
            yield Problem(key, f"{text} is as long as {lengths[spec.interval_ns]}")
        is_small = not spec.by_time or spec.interval_ns < MINUTE_NS
        from_trades = is_small or (kind is not None and not kind.has_kline(spec))
        if from_trades and not (kind and kind.trade_history):
            yield Problem(key, f"{feed.exchange} serves too little trade history to repair a gap in {text} candles")
        elif is_small and feed.calibrate_on:
            yield Problem(key, f"calibrate_on looks back over {DAYS} days, for which no exchange serves {text} candles")


def _fit(config: Config, artifact: Artifact) -> Iterator[Problem]:
    manifest, own, keep = artifact.manifest, config.decision, config.store.journal_keep
    is_guarded = own.cooldown_candles is not None or own.daily_loss_limit_bps is not None
    for number, feed in enumerate(config.feeds):
        for at, text in enumerate(feed.candles):
            if text not in manifest.specs:
                known = ", ".join(manifest.specs)
                yield Problem(f"feeds[{number}].candles[{at}]", f"artifact {manifest.name} serves {known}, not {text}")
            elif is_guarded and (needed := _journal_for(manifest, CandleSpec.parse(text))) > keep:
                reason = f"with a guard of [decision] {text} candles need a store.journal_keep of {needed}, not {keep}"
                yield Problem(f"feeds[{number}].candles[{at}]", reason)


def _journal_for(manifest: Manifest, spec: CandleSpec) -> int:
    """Return the candles a guarded line may need: an epoch to make up for, and from there to midnight and its fold."""
    return 2 * manifest.epoch + manifest.warmup + (candles_a_day(spec) if spec.by_time else 0)
