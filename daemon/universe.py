"""Which of an exchange's contracts are wanted, and what has become of those that were taken up. Pure."""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec

from feeds.market import Market


class NoSuchMarket(Exception):
    """The exchange lists nothing of that name.

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


def _named(symbols: Iterable[str], wanted: str) -> list[str]:
    if is_pattern(wanted):
        return sorted(fnmatch.filter(symbols, "*" if wanted == "all" else wanted))
    return [symbol for symbol in symbols if symbol == wanted]


def choose(markets: Mapping[str, Market], wanted: Sequence[str]) -> list[Market]:
    """Return the markets that the list names, each once: in the order of the list, those of a pattern by name.

    A pattern takes what is traded now; one that is named is taken halted too, and waited for.

    Raises:
        NoSuchMarket: an entry names none.

    """
    traded = [symbol for symbol, market in markets.items() if market.trading]
    chosen: dict[str, Market] = {}
    for at, name in enumerate(wanted):
        found = _named(traded if is_pattern(name) else markets, name)
        if not found:
            near = difflib.get_close_matches(name, traded, n=1)
            raise NoSuchMarket(name, at, near[0] if near else None)
        chosen.update((symbol, markets[symbol]) for symbol in found)
    return list(chosen.values())


class Fate(StrEnum):
    """What has become of a market."""

    LISTED = "listed"
    """It is new, or back, and the configuration names it."""
    HALTED = "halted"
    """It is listed, and not traded."""
    DELISTED = "delisted"
    CHANGED = "changed"
    """Its tick, lot, leverage or native name is another: it is to be taken up anew."""
    INCOMPARABLE = "incomparable"
    """Its volume counts something else: candles before and after are of two markets."""


class Change(msgspec.Struct, frozen=True):
    """One market's fate."""

    fate: Fate
    market: Market
    """As it is now; as it was where it is gone or incomparable."""
    reason: str


HALTED = "the exchange lists it and does not trade it"
_ANEW = ("price_decimals", "size_decimals", "max_leverage", "native")


def changes(taken: Iterable[Market], now: Mapping[str, Market], wanted: Sequence[str]) -> list[Change]:
    """Compare the markets that were taken up with what the exchange lists now; what is as it was is left out."""
    known = {market.symbol: market for market in taken}
    found = [change for old in known.values() if (change := _fate(old, now.get(old.symbol)))]
    traded = [symbol for symbol, market in now.items() if market.trading and symbol not in known]
    fresh = dict.fromkeys(symbol for name in wanted for symbol in _named(traded, name))
    return found + [Change(Fate.LISTED, now[symbol], "newly listed") for symbol in fresh]


def _fate(old: Market, new: Market | None) -> Change | None:
    if new is None:
        return Change(Fate.DELISTED, old, "the exchange no longer lists it")
    if old.volume_unit != new.volume_unit:
        said = f"volume counted {old.volume_unit} and counts {new.volume_unit}: restart to take it up anew"
        return Change(Fate.INCOMPARABLE, old, said)
    told = [f"{name} {was} → {is_}" for name in _ANEW if (was := getattr(old, name)) != (is_ := getattr(new, name))]
    if told:
        return Change(Fate.CHANGED, new, "; ".join(told))
    return None if new.trading else Change(Fate.HALTED, new, HALTED)
