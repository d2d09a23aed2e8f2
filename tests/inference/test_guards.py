"""The guards' ledger of a day, against what can be read off the sides it published."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from feeds.market import NS_PER_DAY, CandleSpec
from inference import guards
from inference.guards import Guard
from inference.signals import Outlook, Rules, Side, decide

SHORT, FLAT, LONG = Side
FIRST = 28_800_000
CHEAP = Rules(taker_fee_bps=1.0, half_spread_bps=1.0)
BOTH = msgspec.structs.replace(CHEAP, cooldown_candles=3, daily_loss_limit_bps=100.0)
SIGN = {SHORT: -1.0, FLAT: 0.0, LONG: 1.0}


def followed(
    closes: Sequence[float | None], wanted: Sequence[Side], rules: Rules = BOTH, first: int = FIRST
) -> list[Guard]:
    """Return the ledger after each candle; None among the closes is a void."""
    guard, found = guards.begin(first), []
    for seq, (close, side) in enumerate(zip(closes, wanted, strict=True), first):
        if close is None:
            guard = guards.pass_over(guard, seq)
        else:
            guard = guards.follow(guard, seq=seq, close=close, wanted=side, rules=rules)
        found.append(guard)
    return found


def sides(closes: Sequence[float | None], wanted: Sequence[Side], rules: Rules = BOTH) -> list[Side]:
    return [guard.side for guard in followed(closes, wanted, rules)]


def expected(closes: Sequence[float], wanted: Sequence[Side], rules: Rules) -> list[tuple[Side, str]]:
    """Say the same by looking back over whole trades at each candle; near a threshold it gives up."""
    fill, limit, pause = rules.fill_bps, rules.daily_loss_limit_bps, rules.cooldown_candles
    told: list[tuple[Side, str]] = []
    lost_at: list[int] = []
    stopped = False
    for now, want in enumerate(wanted):
        held = [FLAT, *(side for side, _ in told)]  # held[k] from close k - 1 to close k
        moves = [0.0, *(1e4 * (b / a - 1.0) for a, b in pairwise(closes[: now + 1]))]
        turns = [abs(SIGN[b] - SIGN[a]) for a, b in pairwise([*held, FLAT])]
        day = sum(SIGN[side] * move for side, move in zip(held, moves, strict=True)) - fill * sum(turns)
        assume(limit is None or abs(day + limit) > 1e-6)
        stopped = stopped or (limit is not None and day < -limit)
        if held[now] is not FLAT and (stopped or want is not held[now]):
            begun = max(k for k in range(now + 1) if held[k] is not held[now]) + 1
            trade = sum(SIGN[held[k]] * moves[k] for k in range(begun, now + 1)) - 2 * fill
            assume(abs(trade) > 1e-6)
            lost_at += [now] if trade < 0 else []
        rests = pause is not None and any(now - at < pause for at in lost_at)
        reason = "daily_loss_limit" if stopped else "cooldown" if rests else ""
        told.append((FLAT if reason else want, reason))
    return told


days = st.lists(st.tuples(st.floats(90.0, 110.0), st.sampled_from(Side)), min_size=1, max_size=40)
guarded_rules = st.builds(
    Rules,
    taker_fee_bps=st.floats(0, 20), half_spread_bps=st.floats(0, 5),
    cooldown_candles=st.one_of(st.none(), st.integers(1, 10)),
    daily_loss_limit_bps=st.one_of(st.none(), st.floats(1.0, 3000.0)),
)  # fmt: skip


@given(days, guarded_rules)
def test_a_day_is_what_can_be_read_off_its_trades(day: list[tuple[float, Side]], rules: Rules) -> None:
    closes, wanted = zip(*day, strict=True)
    told = [(guard.side, guard.reason) for guard in followed(closes, wanted, rules)]
    assert told == expected(closes, wanted, rules)


@given(days)
def test_without_guards_the_models_side_stands(day: list[tuple[float, Side]]) -> None:
    closes, wanted = zip(*day, strict=True)
    assert sides(closes, wanted, CHEAP) == list(wanted)


def test_a_day_by_hand() -> None:
    """Fills of 2 bps; a long trade wins, the short one after it loses some 50 bps, and three candles are flat."""
    closes = [100.0, 101.0, 101.0 * 0.995, 101.0, 101.0, 101.0, 101.0]
    wanted = [LONG, LONG, SHORT, FLAT, LONG, LONG, LONG]
    found = followed(closes, wanted)
    assert [guard.side for guard in found] == [LONG, LONG, SHORT, FLAT, FLAT, FLAT, LONG]
    assert [guard.reason for guard in found] == ["", "", "", "cooldown", "cooldown", "cooldown", ""]
    back = 1e4 * (1 / 0.995 - 1)
    assert [guard.day_bps for guard in found] == pytest.approx(
        [-2, 98, 98 - 50 - 4, 44 - back - 2, 42 - back, 42 - back, 40 - back]
    )
    assert [guard.trade_bps for guard in found] == pytest.approx([-2, 98, -2, 0, 0, 0, -2])


def test_the_cooldown_counts_from_the_losing_exit() -> None:
    falls = [100.0, 99.9, 99.9, 99.9, 99.9, 99.9]
    for pause, flat in ((1, 1), (2, 2), (4, 4)):
        rules = msgspec.structs.replace(CHEAP, cooldown_candles=pause)
        found = sides(falls, [LONG, SHORT, SHORT, SHORT, SHORT, SHORT], rules)
        assert found == [LONG, *[FLAT] * flat, *[SHORT] * (5 - flat)], "what lost is not turned over"
    assert sides(falls, [SHORT, LONG, LONG, LONG, LONG, LONG]) == [SHORT, LONG, LONG, LONG, LONG, LONG], "it won"
    assert guards.resume_after(7, -1e-9, 3) == 10
    assert guards.resume_after(7, 0.0, 3) == guards.resume_after(7, -5.0, None) == 7


def test_the_limit_stops_the_day_where_closing_would_reach_it() -> None:
    """Entry 2 bps and exit 2 bps: at 96 bps down the day has lost 100."""
    rules = msgspec.structs.replace(CHEAP, daily_loss_limit_bps=100.0)
    for down_bps, side in ((95.99, LONG), (96.01, FLAT)):
        low = 100.0 * (1 - down_bps / 1e4)
        found = followed([100.0, low, 120.0, 120.0], [LONG] * 4, rules)
        assert found[1].side is side
        assert [guard.side for guard in found[2:]] == [side, side], "a recovery comes too late"
    assert [guard.reason for guard in found] == ["", *["daily_loss_limit"] * 3]
    assert found[3].day_bps == pytest.approx(-100.01), "nothing more is lost"
    assert guards.loss_reached(-100.0, 100.0)
    assert not guards.loss_reached(-99.99, 100.0)
    assert not guards.loss_reached(-1e9, None)


def test_many_small_losses_and_their_costs_reach_the_limit_too() -> None:
    rules = msgspec.structs.replace(CHEAP, daily_loss_limit_bps=50.0)
    found = sides([100.0] * 30, [LONG, FLAT] * 15, rules)
    assert found == [*[LONG, FLAT] * 12, LONG, *[FLAT] * 5], "13 round trips of 4 bps"


def test_a_return_is_of_the_side_held() -> None:
    assert guards.return_bps(LONG, 100.0, 101.0) == pytest.approx(100.0)
    assert guards.return_bps(SHORT, 100.0, 101.0) == pytest.approx(-100.0)
    assert guards.return_bps(FLAT, 0.0, 101.0) == 0.0, "a day's first candle has none before it"


def test_a_void_changes_nothing_but_the_chain_and_time_passes() -> None:
    found = followed([100.0, None, 99.9, None, None, 99.9], [LONG, SHORT, SHORT, SHORT, SHORT, SHORT])
    before, void = found[0], found[1]
    assert msgspec.structs.replace(void, chain=before.chain) == before
    assert void.chain != before.chain
    assert [guard.side for guard in found] == [LONG, LONG, FLAT, FLAT, FLAT, SHORT]


def test_the_chain_tells_apart_whatever_went_in() -> None:
    base: dict[str, list[float | None]] = {"closes": [100.0, 101.0, 102.0]}
    wanted = [LONG, LONG, FLAT]
    chains = {
        followed(base["closes"], wanted)[-1].chain,
        followed([100.0, 101.0, 102.00000000000001], wanted)[-1].chain,
        followed([100.0, None, 102.0], wanted)[-1].chain,
        followed(base["closes"], [LONG, SHORT, FLAT])[-1].chain,
        followed(base["closes"], wanted, first=FIRST + 1)[-1].chain,
        followed(base["closes"][:2], wanted[:2])[-1].chain,
    }
    assert len(chains) == 6
    last = followed(base["closes"], wanted)[-1]
    assert last.hash_with(b"one") != last.hash_with(b"other")
    assert len(last.hash_with(b"one")) == 32


def test_a_guard_leaves_what_the_model_expects() -> None:
    outlook = Outlook(p_touch=0.8, p_up=0.75, barrier_bps=50.0, volatility_bps=40.0, in_range=True)
    decision = decide(outlook, held=FLAT, funding=0.0, rules=CHEAP, confirmations=[])
    assert decision.side is LONG
    stopped = Guard(chain=b"", reason="cooldown")
    assert guards.guarded(decision, stopped) == msgspec.structs.replace(
        decision, side=FLAT, confidence=decision.p_flat, reasons=["cooldown"]
    )
    assert guards.guarded(decision, Guard(chain=b"", side=LONG)) is decision
    idle = msgspec.structs.replace(decision, side=FLAT, reasons=["edge_below_cost"])
    assert guards.guarded(idle, stopped) is idle, "where the model is flat itself, its reason is told"


@given(st.sampled_from(["1s", "1m", "5m", "1h", "1d"]), st.integers(0, 10**10))
def test_a_day_begins_with_the_candle_that_closes_at_midnight(text: str, seq: int) -> None:
    spec = CandleSpec.parse(text)
    first = guards.day_begin(seq, spec)
    assert first * spec.interval_ns % NS_PER_DAY == 0
    assert 0 <= seq - first < guards.candles_a_day(spec)
    assert guards.candles_a_day(spec) * spec.interval_ns == NS_PER_DAY
