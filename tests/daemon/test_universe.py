"""Which contracts are wanted, and what has become of them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.universe import Change, Fate, NoSuchMarket, changes, choose, is_pattern
from feeds.market import Market

BASES = ("BTC", "ETH", "SOL", "XRP", "1000PEPE", "BTCDOM")
SYMBOLS = tuple(f"{base}/{quote}:{quote}" for base in BASES for quote in ("USDT", "USDC"))
PATTERNS = ("all", "*", "BTC*", "*/USDT:USDT", "[BE]*", "???/USDC:USDC")


def market(symbol: str = "BTC/USDT:USDT", **differs: object) -> Market:
    plain = Market(exchange="binance", symbol=symbol, native=symbol[:3], price_decimals=1, size_decimals=3)
    return msgspec.structs.replace(plain, **differs)


def listing(*symbols: str, **differs: object) -> dict[str, Market]:
    return {symbol: market(symbol, **differs) for symbol in symbols}


listings = st.lists(st.sampled_from(SYMBOLS), unique=True).flatmap(
    lambda symbols: st.fixed_dictionaries(
        {
            symbol: st.builds(
                market,
                st.just(symbol),
                trading=st.booleans(),
                price_decimals=st.sampled_from([1, 1, 1, 2]),
                volume_unit=st.sampled_from(["base coin", "base coin", "contracts of 1 USD"]),
            )
            for symbol in symbols
        }
    )
)
wanted_lists = st.lists(st.sampled_from(SYMBOLS + PATTERNS), min_size=1, max_size=5)


def test_a_name_a_glob_and_all() -> None:
    now = listing("ETH/USDT:USDT", "BTC/USDT:USDT", "BTC/USDC:USDC")
    assert [m.symbol for m in choose(now, ["all"])] == sorted(now)
    assert [m.symbol for m in choose(now, ["*/USDT:USDT", "all"])] == [
        "BTC/USDT:USDT", "ETH/USDT:USDT", "BTC/USDC:USDC"
    ]  # fmt: skip
    assert [m.symbol for m in choose(now, ["ETH/USDT:USDT", "BTC*"])] == [
        "ETH/USDT:USDT", "BTC/USDC:USDC", "BTC/USDT:USDT"
    ]  # fmt: skip
    assert [is_pattern(text) for text in ("all", "BTC*", "?TC/USDT:USDT", "[AB]*", "BTC/USDT:USDT")] == [
        True, True, True, True, False
    ]  # fmt: skip


def test_one_that_is_named_is_waited_for_and_one_under_a_glob_is_not() -> None:
    now = listing("BTC/USDT:USDT") | listing("ETH/USDT:USDT", trading=False)
    assert [m.symbol for m in choose(now, ["ETH/USDT:USDT"])] == ["ETH/USDT:USDT"]
    assert [m.symbol for m in choose(now, ["all"])] == ["BTC/USDT:USDT"]


@pytest.mark.parametrize("wanted", ["BTK/USDT:USDT", "BTK*"])
def test_what_nobody_lists_is_said_with_its_place_and_the_nearest(wanted: str) -> None:
    with pytest.raises(NoSuchMarket) as error:
        choose(listing("ETH/USDC:USDC", "BTC/USDT:USDT"), ["ETH*", wanted])
    assert (str(error.value), error.value.at) == (wanted, 1)
    assert error.value.nearest == ("BTC/USDT:USDT" if wanted == "BTK/USDT:USDT" else None)


@given(now=listings, wanted=wanted_lists)
def test_what_is_chosen_is_listed_once_and_in_the_order_of_the_list(now: dict[str, Market], wanted: list[str]) -> None:
    try:
        chosen = choose(now, wanted)
    except NoSuchMarket as error:
        alone = [wanted[error.at]]
        with pytest.raises(NoSuchMarket):
            choose(now, alone)
        return
    symbols = [m.symbol for m in chosen]
    assert len(set(symbols)) == len(symbols)
    assert all(now[m.symbol] is m for m in chosen)
    each = [[m.symbol for m in choose(now, [name])] for name in wanted]
    assert symbols == list(dict.fromkeys(symbol for found in each for symbol in found))
    assert changes(chosen, now, wanted) == [
        Change(Fate.HALTED, m, "the exchange lists it and does not trade it") for m in chosen if not m.trading
    ]


@given(before=listings, now=listings, wanted=wanted_lists)
def test_following_all_changes_leads_to_what_is_listed(
    before: dict[str, Market], now: dict[str, Market], wanted: list[str]
) -> None:
    taken = {symbol: m for symbol, m in before.items() if m.trading}
    found = changes(taken.values(), now, wanted)
    assert len({change.market.symbol for change in found}) == len(found)
    stopped = set()
    for change in found:
        symbol = change.market.symbol
        assert change.reason
        if change.fate in (Fate.DELISTED, Fate.INCOMPARABLE):
            assert taken.pop(symbol) is change.market
            stopped.add(symbol)
        elif change.fate in (Fate.LISTED, Fate.CHANGED):
            assert (symbol in taken) is (change.fate is Fate.CHANGED)
            taken[symbol] = change.market
    for symbol, m in taken.items():
        assert (m.price_decimals, m.volume_unit) == (now[symbol].price_decimals, now[symbol].volume_unit)
    for name in wanted:
        try:
            missing = {m.symbol for m in choose(now, [name]) if m.trading} - taken.keys() - stopped
        except NoSuchMarket:
            continue
        assert not missing
    again = changes(taken.values(), {s: m for s, m in now.items() if s not in stopped}, wanted)
    assert {change.fate for change in again} <= {Fate.HALTED}


@pytest.mark.parametrize(
    ("differs", "fate", "said"),
    [
        ({"price_decimals": 2}, Fate.CHANGED, "price_decimals 1 → 2"),
        ({"size_decimals": 0, "max_leverage": 20.0}, Fate.CHANGED, "size_decimals 3 → 0; max_leverage None → 20.0"),
        ({"native": "BTCUSDT2"}, Fate.CHANGED, "native BTC → BTCUSDT2"),
        ({"volume_unit": "contracts of 1 USD"}, Fate.INCOMPARABLE, "volume counted base coin and counts contracts of"),
        ({"trading": False}, Fate.HALTED, "does not trade"),
        ({"trading": False, "price_decimals": 2}, Fate.CHANGED, "price_decimals 1 → 2"),
    ],
)
def test_what_differs_is_said(differs: dict[str, Any], fate: Fate, said: str) -> None:
    old, new = market(), market(**differs)
    (change,) = changes([old], {new.symbol: new}, ["all"])
    assert change.fate is fate
    assert said in change.reason
    assert change.market is (old if fate is Fate.INCOMPARABLE else new)
    assert changes([old], {old.symbol: market(listed_at_ns=1)}, ["all"]) == []


def test_one_that_comes_is_taken_under_a_pattern_or_by_its_name_and_once_it_trades() -> None:
    old, new = market(), market("ETH/USDT:USDT")
    both = {old.symbol: old, new.symbol: new}
    assert changes([old], both, ["BTC*"]) == []
    for wanted in (["*"], ["BTC*", "ETH/USDT:USDT"], ["all", "ETH*"]):
        assert changes([old], both, wanted) == [Change(Fate.LISTED, new, "newly listed")]
        assert changes([old], {**both, new.symbol: market(new.symbol, trading=False)}, wanted) == []


def test_one_that_goes_is_told_as_it_was() -> None:
    old = market()
    assert changes([old], {}, ["all"]) == [Change(Fate.DELISTED, old, "the exchange no longer lists it")]
