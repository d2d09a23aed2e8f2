"""What only the parts themselves can say about a configuration: symbols, candle specs, exchanges, the artifact's fit.

Nothing is started and nobody is asked over the network.
"""

from collections.abc import Iterator
from pathlib import Path

from config.load import ConfigError, Problem
from config.schema import Config, Feed
from feeds.exchanges import CODECS
from feeds.market import NS_PER_S, CandleSpec, slug_of
from inference import artifact as artifacts
from inference.artifact import Artifact, ArtifactError

MINUTE_NS = 60 * NS_PER_S
TRADE_HISTORY = frozenset({"binance"})
"""Exchanges that serve trades far enough back to repair a gap: 48 h of aggTrades. Only there do candles below a minute,
and candles that close by trades, make sense."""


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
        if feed.exchange not in CODECS:
            served = ", ".join(sorted(CODECS))
            yield Problem(f"feeds[{number}].exchange", f"{feed.exchange} is not served by this version; {served} is")
        yield from _symbols(number, feed)
        yield from _specs(number, feed)


def _symbols(number: int, feed: Feed) -> Iterator[Problem]:
    for at, symbol in enumerate(feed.symbols):
        if symbol == "all" or set("*?[") & set(symbol):
            continue
        try:
            slug_of(symbol)
        except ValueError as error:
            yield Problem(f"feeds[{number}].symbols[{at}]", str(error))


def _specs(number: int, feed: Feed) -> Iterator[Problem]:
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
        if feed.exchange not in TRADE_HISTORY and (not spec.by_time or spec.interval_ns < MINUTE_NS):
            yield Problem(key, f"{feed.exchange} serves too little trade history to repair a gap in {text} candles")


def _fit(config: Config, artifact: Artifact) -> Iterator[Problem]:
    manifest = artifact.manifest
    for number, feed in enumerate(config.feeds):
        for at, text in enumerate(feed.candles):
            if text not in manifest.specs:
                known = ", ".join(manifest.specs)
                yield Problem(f"feeds[{number}].candles[{at}]", f"artifact {manifest.name} serves {known}, not {text}")
