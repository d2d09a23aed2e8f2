"""What has become of an exchange's contracts since they were taken up. Pure."""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec

from feeds.market import Market


class NoSuchMarket(Exception):
    """The exchange trades nothing of that name.

    Attributes:
        at: position in the list of what was wanted.
        nearest: the most similar symbol that is traded, if any.

    """

    def __init__(self, wanted: str, at: int, nearest: str | None) -> None:
        super().__init__(wanted)
        self.at, self.nearest = at, nearest


def is_pattern(wanted: str) -> bool:
    """Tell whether a configured symbol names many: `all`, or a glob."""
    return wanted == "all" or bool(set("*?[") & set(wanted))


def choose(markets: Mapping[str, Market], wanted: Sequence[str]) -> list[Market]:
    """Return the traded markets that the list names, each once: in the order of the list, a pattern's by name.

    Raises:
        NoSuchMarket: an entry names none.

    """
    traded = {symbol: market for symbol, market in markets.items() if market.trading}
    chosen: dict[str, Market] = {}
    for at, name in enumerate(wanted):
        if is_pattern(name):
            found = sorted(fnmatch.filter(traded, "*" if name == "all" else name))
        else:
            found = [name] if name in markets else []  # one that is halted is waited for
        if not found:
            near = difflib.get_close_matches(name, traded, n=1)
            raise NoSuchMarket(name, at, near[0] if near else None)
        chosen.update((symbol, markets[symbol]) for symbol in found)
    return list(chosen.values())


class Fate(StrEnum):
    """What has become of a market."""

    LISTED = "listed"
    """It is new, and a pattern of the configuration names it."""
    HALTED = "halted"
    RESUMED = "resumed"
    DELISTED = "delisted"
    CHANGED = "changed"
    """Its tick, lot, leverage or unit is another."""


class Change(msgspec.Struct, frozen=True):
    """One market's fate."""

    fate: Fate
    market: Market
    """As it is now; as it was, where it is gone."""
    reason: str


_DECISIVE = ("price_decimals", "size_decimals", "volume_unit", "max_leverage", "native")


def changes(taken: Iterable[Market], now: Mapping[str, Market], wanted: Sequence[str]) -> list[Change]:
    """Compare the markets that were taken up with what the exchange lists now."""
    found: list[Change] = []
    known = {market.symbol: market for market in taken}
    for symbol, old in known.items():
        new = now.get(symbol)
        if new is None:
            found.append(Change(Fate.DELISTED, old, "the exchange no longer lists it"))
            continue
        differs = [name for name in _DECISIVE if getattr(old, name) != getattr(new, name)]
        if differs:
            told = "; ".join(f"{name} {getattr(old, name)} → {getattr(new, name)}" for name in differs)
            found.append(Change(Fate.CHANGED, new, told))
        elif old.trading and not new.trading:
            found.append(Change(Fate.HALTED, new, "the exchange has halted it"))
        elif new.trading and not old.trading:
            found.append(Change(Fate.RESUMED, new, "it trades again"))
    patterns = [name for name in wanted if is_pattern(name)]
    for symbol, market in sorted(now.items()):
        named = any(fnmatch.fnmatch(symbol, "*" if name == "all" else name) for name in patterns)
        if symbol not in known and market.trading and named:
            found.append(Change(Fate.LISTED, market, "newly listed"))
    return found
