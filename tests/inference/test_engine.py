import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.candles import EventCandles
from feeds.capture import read_agg_trades
from feeds.market import NS_PER_DAY, NS_PER_MS, SEQ_PER_DAY, Candle, CandleSpec, Market, Origin, Trade
from inference.artifact import Affine, Artifact, Calibration, Manifest, load, resolve, seal, sizes_of
from inference.engine import Answer, MarketEngine, Model, Peek, Phase, peek
from inference.features import N_FEATURES, N_INDICATORS, new_state, update
from inference.kernels import reference
from inference.revisions import Lines, RevisionBook, policy_under
from inference.signals import Rules, Side
from tests.data import shared
from tests.inference import candles as recorded
from tests.inference.ensembles import ensemble

W, E = 40, 100
MINUTE = CandleSpec.parse("1m")
EVENTS = CandleSpec.parse("200t")
EAGER = Rules(taker_fee_bps=0.0, half_spread_bps=0.0, enter_edge_bps=0.6, exit_edge_bps=0.3)
"""Sides change often under these, so that the side held matters."""


def market(symbol: str = "BTC/USDT:USDT", listed_at_ns: int | None = None) -> Market:
    return Market(
        exchange="binance", symbol=symbol, native="X", price_decimals=2, size_decimals=3, listed_at_ns=listed_at_ns
    )


def artifact(**changes: object) -> Artifact:
    weights = ensemble(seed=5, gain=2.0)
    manifest = Manifest(
        name="random", created="2026-01-01T00:00:00Z", sizes=sizes_of(weights), specs=("1m", EVENTS.text), warmup=W,
        epoch=E, horizons=(5, 15), signal_horizon={"1m": 15, EVENTS.text: 5},
    )  # fmt: skip
    return seal(weights, msgspec.structs.replace(manifest, **changes))


RANDOM = Model(artifact(), EAGER)


@functools.cache
def minutes(symbol: str = "BTC", count: int = 4_000) -> list[Candle]:
    """Read recorded 1m candles."""
    rows = recorded.read(f"binance_um/{symbol}USDT_1m_2025-05_2025-06.parquet", count)
    return [
        Candle(
            seq=close_ns // MINUTE.interval_ns, open_time_ns=close_ns - MINUTE.interval_ns, close_time_ns=close_ns,
            open=o, high=h, low=l, close=c, volume=v, trades=1, closed=True, origin=Origin.EXCHANGE,
        )
        for o, h, l, c, v, close_ns in zip(*(column.tolist() for column in rows), strict=True)
    ]  # fmt: skip


def funding_of(candle: Candle) -> float:
    return 0.0001 * (candle.seq % 5) if candle.seq % 7 == 0 else 0.0


def first_epoch(model: Model) -> int:
    """Return the first epoch whose whole fold is recorded, with some candles before it."""
    return (minutes()[0].seq + model.warmup) // model.epoch + 2


def from_seq(first: int, last: int, symbol: str = "BTC") -> list[Candle]:
    begin = minutes(symbol)[0].seq
    assert begin <= first <= last <= minutes(symbol)[-1].seq
    return minutes(symbol)[first - begin : last - begin + 1]


def engine(model: Model = RANDOM, symbol: str = "BTC/USDT:USDT", listed_at_ns: int | None = None) -> MarketEngine:
    return MarketEngine(model, market(symbol, listed_at_ns), MINUTE)


Answers = dict[int, Answer | str]


def run(of: MarketEngine, candles: Iterable[Candle], voids: frozenset[int] = frozenset()) -> Answers:
    """Fold candles, those of `voids` as what the exchange does not have; return what was answered, by ordinal."""
    answers: Answers = {}
    for candle in candles:
        answer = of.skip(candle.seq) if candle.seq in voids else of.advance(candle, funding_of(candle))
        if answer is not None:
            answers[candle.seq] = answer
    return answers


def encoded(answers: Answers) -> dict[int, bytes]:
    """Write answers down: equal bytes are equal bits."""
    return {seq: msgspec.json.encode(answer) for seq, answer in answers.items()}


def test_the_shipped_models_answers_do_not_depend_on_the_start() -> None:
    model = Model(load(resolve("default")), Rules())
    warmup, length = model.warmup, model.epoch
    epoch = first_epoch(model)
    last = (epoch + 3) * length + 20
    begin = epoch * length - warmup
    reference_engine = engine(model)
    answers = encoded(run(reference_engine, from_seq(begin, last)))
    assert list(answers) == list(range(epoch * length, last + 1))
    starts = {
        begin - 1: epoch,
        begin + 1: epoch + 1,  # one candle too late for its epoch
        begin + length: epoch + 1,
        (epoch + 1) * length + length // 2: epoch + 2,
        (epoch + 3) * length - warmup: epoch + 3,
    }
    for start, ready in starts.items():
        other = engine(model)
        mine = encoded(run(other, from_seq(start, last)))
        assert list(mine) == list(range(ready * length, last + 1)), "every candle from the first whole fold on"
        assert mine == {seq: answers[seq] for seq in mine}
        assert other.snapshot() == reference_engine.snapshot()


def test_phases_follow_the_fold() -> None:
    epoch = first_epoch(RANDOM)
    new = engine()
    assert (new.phase, new.folded) == (Phase.COLD, 0)
    run(new, from_seq(epoch * E - W - 3, epoch * E - W - 1))
    assert new.phase is Phase.COLD
    run(new, from_seq(epoch * E - W, epoch * E - 1))
    assert (new.phase, new.folded) == (Phase.WARMING, W)
    run(new, from_seq(epoch * E, (epoch + 1) * E - 1))
    assert (new.phase, new.folded) == (Phase.READY, W + E)
    run(new, from_seq((epoch + 1) * E, (epoch + 1) * E))
    assert (new.phase, new.folded) == (Phase.READY, W + 1), "the fold begun W candles ago has taken over"
    assert new.fold_start((epoch + 1) * E) == (epoch + 1) * E - W
    new.reset()
    assert (new.phase, new.folded) == (Phase.COLD, 0)
    assert new.snapshot() == engine().snapshot()


@settings(max_examples=40)
@given(
    start=st.integers(-E, 2 * E),
    cuts=st.lists(st.integers(0, 4 * E), max_size=4),
    voids=st.frozensets(st.one_of(st.integers(0, 4 * E), st.sampled_from([E - W, E, 2 * E - W, 2 * E, 3 * E]))),
)
def test_neither_start_nor_restarts_show_with_voids_anywhere(
    start: int, cuts: list[int], voids: frozenset[int]
) -> None:
    origin = (first_epoch(RANDOM) + 1) * E
    gone = frozenset(origin + n for n in voids)
    last = origin + 4 * E
    steady = engine()
    answers = run(steady, from_seq(origin - E - W, last), gone)
    restarted = engine()
    mine: Answers = {}
    for candle in from_seq(origin + start, last):
        if candle.seq - origin in cuts:
            snapshot = restarted.snapshot()
            restarted = engine()
            restarted.restore(snapshot)
        mine |= run(restarted, [candle], gone)
    first = min(mine)
    assert first % E == 0
    assert first - origin - start < E + W
    assert encoded(mine) == encoded({seq: answer for seq, answer in answers.items() if seq >= first})
    assert restarted.snapshot() == steady.snapshot()
    assert {seq for seq, answer in mine.items() if isinstance(answer, str)} == {seq for seq in gone if seq >= first}


def test_the_hash_tells_apart_whatever_went_in() -> None:
    origin = first_epoch(RANDOM) * E
    rows = from_seq(origin - W, origin + 1)
    plain = run(engine(), rows)
    other_price = [msgspec.structs.replace(rows[0], volume=rows[0].volume + 1.0), *rows[1:]]
    variants = [
        run(engine(), other_price),
        run(engine(), rows, frozenset({origin - W})),
        run(engine(symbol="ETH/USDT:USDT"), rows),
    ]
    hashes = {str(answers[origin + 1][1]) for answers in (plain, *variants)}
    assert len(hashes) == 4
    by_funding = engine()
    run(by_funding, rows[:-1])
    answer = by_funding.advance(rows[-1], 0.5)
    assert answer is not None
    assert answer.inputs_hash not in hashes


def test_sides_are_held_from_candle_to_candle() -> None:
    origin = first_epoch(RANDOM) * E
    answers = run(engine(), from_seq(origin - W, origin + 10 * E))
    decisions = [answer.decision for answer in answers.values() if isinstance(answer, Answer)]
    assert {decision.side for decision in decisions} == set(Side)
    held = [(a, b) for a, b in pairwise(decisions) if b.reasons == ["held_until_exit_edge"]]
    assert held
    assert all(a.side is b.side for a, b in held)


def test_a_hole_is_our_bug() -> None:
    origin = first_epoch(RANDOM) * E
    new = engine()
    run(new, from_seq(origin - W, origin))
    with pytest.raises(AssertionError, match="no holes"):
        run(new, from_seq(origin + 2, origin + 2))


@pytest.mark.parametrize("into_ms", [0, 30_000])
@pytest.mark.parametrize("listed", [E // 2, E - W, E - W + 1, E - 1, E])
def test_a_market_listed_inside_an_epoch_begins_with_its_first_candle(listed: int, into_ms: int) -> None:
    origin = first_epoch(RANDOM) * E
    first = origin + listed
    listed_ns = (first - 1) * MINUTE.interval_ns + into_ms * NS_PER_MS
    new = engine(listed_at_ns=listed_ns)
    rows = from_seq(first, origin + 3 * E)
    answers = run(new, rows)
    assert list(answers) == list(range(first + W, origin + 3 * E + 1)), "ready after W candles"
    for start in range(first + 1, origin + 2 * E - W, 37):
        later = engine(listed_at_ns=listed_ns)
        mine = encoded(run(later, from_seq(start, origin + 3 * E)))
        assert mine
        assert mine == {seq: encoded({seq: answers[seq]})[seq] for seq in mine}
    unproven = run(engine(), rows).keys()
    assert unproven <= answers.keys()
    assert (unproven == answers.keys()) == (listed == E - W), "without a listing time only a whole fold counts"


def asked(of: MarketEngine, candle: Candle) -> Peek:
    return Peek(of, msgspec.structs.replace(candle, closed=False, origin=Origin.TRADES), funding_of(candle))


def test_peek_says_what_advance_then_says_and_changes_nothing() -> None:
    origin = first_epoch(RANDOM) * E
    peeked, plain = engine(), engine()
    run(plain, from_seq(origin - W, origin))
    run(peeked, from_seq(origin - W, origin))
    reasons = set()
    for candle in from_seq(origin + 1, origin + 8 * E):  # epochs change over on the way
        before = peeked.snapshot()
        (decision,) = peek([asked(peeked, candle)])
        assert peeked.snapshot() == before
        answer = peeked.advance(candle, funding_of(candle))
        assert answer is not None
        assert msgspec.json.encode(decision) == msgspec.json.encode(answer.decision)
        assert answer == plain.advance(candle, funding_of(candle))
        reasons |= set(decision.reasons)
    assert len(reasons) == 3, "the side held matters on the way"
    assert peek([]) == []


def test_peeking_at_many_markets_is_peeking_at_each() -> None:
    origin = first_epoch(RANDOM) * E
    model = RANDOM
    engines = {}
    for n, symbol in enumerate(("BTC", "ETH", "SOL", "XRP", "BNB")):
        engines[symbol] = engine(model, f"{symbol}/USDT:USDT")
        run(engines[symbol], from_seq(origin - W, origin + 17 * n, symbol))
    questions = [
        asked(of, from_seq(origin + 17 * n + 1, origin + 17 * n + 1, symbol)[0])
        for n, (symbol, of) in enumerate(engines.items())
    ]
    alone = [msgspec.json.encode(peek([question])[0]) for question in questions]
    assert [msgspec.json.encode(decision) for decision in peek(questions)] == alone
    assert [msgspec.json.encode(decision) for decision in peek(questions[::-1])] == alone[::-1]
    assert len(set(alone)) == len(alone)
    for question, mine in zip(questions, alone, strict=True):
        answer = question.engine.advance(question.candle, question.funding)
        assert answer is not None
        assert msgspec.json.encode(answer.decision) == mine


def test_the_carried_state_is_one_full_pass_of_torch() -> None:
    model = Model(load(resolve("default")), Rules())
    begin = first_epoch(model) * model.epoch - model.warmup
    rows = from_seq(begin, begin + model.warmup + model.epoch - 1)
    carried = engine(model)
    run(carried, rows)
    features = np.empty((len(rows), N_FEATURES), np.float32)
    state, raw = new_state(), np.empty(N_INDICATORS)
    for x, k in zip(features, rows, strict=True):
        update(state, k.open, k.high, k.low, k.close, k.volume, k.close_time_ns, MINUTE.interval_ns, x, raw)
    _, h, c = reference.full_pass(model.weights, features)
    fold = carried._current
    assert fold is not None
    assert fold.folded == len(rows) == model.warmup + model.epoch
    np.testing.assert_allclose(fold.h, h, rtol=0, atol=1e-5)
    np.testing.assert_allclose(fold.c, c, rtol=0, atol=1e-5)
    assert np.abs(h).max() > 0.1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: b"",
        lambda s: b"\xc0",
        lambda s: s[:-1],
        lambda s: s + b"x",
        lambda s: b"\x95\x03" + s[2:],
        lambda s: s.replace(b"folded", b"fooled"),
        lambda s: s.replace(b"flat", b"fiat"),
    ],
)
def test_a_damaged_snapshot_is_refused_and_changes_nothing(spoil: Callable[[bytes], bytes]) -> None:
    origin = first_epoch(RANDOM) * E
    old, new = engine(), engine()
    run(old, from_seq(origin - W, origin + 5))
    old._current.side = Side.FLAT  # type: ignore[union-attr]
    run(new, from_seq(origin - W, origin))
    before = new.snapshot()
    with pytest.raises(ValueError, match="snapshot"):
        new.restore(spoil(old.snapshot()))
    assert new.snapshot() == before


def test_another_models_snapshot_is_refused() -> None:
    weights = ensemble(hidden=16)
    small = Model(seal(weights, msgspec.structs.replace(artifact().manifest, sizes=sizes_of(weights))), EAGER)
    origin = first_epoch(RANDOM) * E
    old = engine(small)
    run(old, from_seq(origin - W, origin))
    with pytest.raises(ValueError, match="another size"):
        engine().restore(old.snapshot())


def test_restoring_replaces_what_was_there() -> None:
    origin = first_epoch(RANDOM) * E
    old, new = engine(), engine()
    run(old, from_seq(origin - W, origin + E))
    run(new, from_seq(origin - W + E, origin + 2 * E))
    new.restore(old.snapshot())
    assert new.snapshot() == old.snapshot()


def test_whatever_decides_is_in_the_policy() -> None:
    policies = [RANDOM.policy]
    for name, value in msgspec.structs.asdict(EAGER).items():
        other = 7 if value is None else value + 0.125
        policies.append(Model(RANDOM.artifact, msgspec.structs.replace(EAGER, **{name: other})).policy)
    policies += [
        Model(artifact(barrier_width=1.5), EAGER).policy,
        Model(artifact(signal_horizon={"1m": 5}), EAGER).policy,
        Model(artifact(calibration=(Calibration(), Calibration(touch=Affine(a=0.5)))), EAGER).policy,
    ]
    assert len(set(policies)) == len(policies) == 1 + 12 + 3
    assert Model(artifact(), msgspec.structs.replace(EAGER)).policy == RANDOM.policy
    assert RANDOM.id.startswith("random-")
    assert (RANDOM.horizon(MINUTE), RANDOM.horizon(EVENTS)) == (15, 5)


FIRST_DAY = 20_000


@functools.cache
def event_days(count: int = 3) -> tuple[tuple[Candle, ...], ...]:
    """Cut a recorded day of trades into candles, as if it had come again on each of some days."""
    tape = shared("trades/binance_um_APEUSDT-aggTrades-2024-10-18.zip")
    builder = EventCandles(EVENTS, price_decimals=4, size_decimals=0)
    days: list[list[Candle]] = [[] for _ in range(count)]
    rows = list(islice(read_agg_trades(tape), 20_000))
    for day in range(count):
        for row in rows:
            time_ns = row.time_ms * NS_PER_MS % NS_PER_DAY + (FIRST_DAY + day) * NS_PER_DAY
            price, size = round(float(row.price) * 10**4) + day, round(float(row.size))
            trade = Trade(row.id, price, size, time_ns, time_ns, row.last - row.first + 1, True)
            for candle in builder.add(trade):
                days[candle.seq // SEQ_PER_DAY - FIRST_DAY].append(candle)
    for candle in builder.close_until((FIRST_DAY + count) * NS_PER_DAY):
        days[-1].append(candle)
    return tuple(tuple(day) for day in days)


def event_engine(listed_at_ns: int | None = None) -> MarketEngine:
    return MarketEngine(RANDOM, market("APE/USDT:USDT", listed_at_ns), EVENTS)


def test_an_event_candles_fold_is_its_day_after_the_last_of_the_eve() -> None:
    eve, second, third = event_days()
    steady = event_engine()
    assert run(steady, eve) == {}, "the day before the first is not known"
    answers = encoded(run(steady, [*second, *third]))
    assert list(answers) == [candle.seq for candle in (*second, *third)], "ready from a day's first candle on"
    starts: dict[int, Sequence[Candle]] = {0: second, 100: second[100:], len(second) - W: second[len(second) - W :]}
    for start, rest in starts.items():
        late = event_engine()
        assert run(late, rest) == {}
        assert encoded(run(late, third)) == {candle.seq: answers[candle.seq] for candle in third}, start
        assert late.snapshot() == steady.snapshot()
    too_late = event_engine()
    assert run(too_late, [*second[len(second) - W + 1 :], *third]) == {}
    assert too_late.phase is Phase.COLD


def test_an_eve_shorter_than_the_warm_up_is_taken_whole_and_nothing_from_before_it() -> None:
    first, second, third = event_days()
    short = second[: W // 2]
    steady, fresh = event_engine(), event_engine()
    run(steady, [*first, *short])
    run(fresh, short)
    answers = encoded(run(steady, third))
    assert list(answers) == [candle.seq for candle in third[W - len(short) :]]
    assert encoded(run(fresh, third)) == answers


def test_the_day_of_its_listing_is_a_markets_first() -> None:
    first, second, _ = event_days()
    listed = event_engine(first[0].open_time_ns)
    answers = run(listed, [*first, *second])
    assert list(answers) == [candle.seq for candle in (*first[W:], *second)]
    assert run(event_engine(first[0].open_time_ns), first[1:]) == {}, "its first candle was not seen"
    assert run(event_engine(first[0].open_time_ns - NS_PER_DAY), first) == {}


def test_a_day_left_out_is_no_eve() -> None:
    first, _, third = event_days()
    assert run(event_engine(), [*first, *third]) == {}


def test_restoring_replaces_the_eve_too() -> None:
    first, second, third = event_days()
    old, new = event_engine(), event_engine()
    run(old, second[:5])
    run(new, [*first, *second[:3]])
    new.restore(old.snapshot())
    assert new.snapshot() == old.snapshot()
    assert run(new, third[:1]) == run(old, third[:1])


@pytest.mark.parametrize("at", [0, 5, W, 413])
def test_event_candles_survive_a_restart_and_are_peeked_at(at: int) -> None:
    first, second, third = event_days()
    steady, restarted = event_engine(), event_engine()
    for candle in (*first, *second, *third[: at + 1]):
        answer = steady.advance(candle, funding_of(candle))
        if candle.seq % SEQ_PER_DAY == at + 1:
            snapshot = restarted.snapshot()
            restarted = event_engine()
            restarted.restore(snapshot)
            if restarted.phase is Phase.READY and at:
                (decision,) = peek([asked(restarted, candle)])
                assert restarted.snapshot() == snapshot
                assert answer is not None
                assert decision == answer.decision
        assert restarted.advance(candle, funding_of(candle)) == answer
    assert restarted.snapshot() == steady.snapshot()


# ---- daily revisions of the calibration


def lines(shift: float) -> Lines:
    return (Calibration(), Calibration(touch=Affine(a=1.2, b=shift), direction=Affine(a=1.5, b=shift)))


def book(days: Iterable[int], source: str = "s") -> RevisionBook:
    made = RevisionBook(source)
    for day in days:
        made.add(day, lines(0.3 * (day % 3) - 0.3))
    return made


def around_midnight() -> tuple[int, int]:
    """Return an epoch's begin and the ordinal of a midnight within it, away from its ends."""
    day = NS_PER_DAY // MINUTE.interval_ns
    midnights = range(minutes()[0].seq // day * day + day, minutes()[-1].seq - E, day)
    return next((seq // E * E, seq) for seq in midnights if 20 <= seq % E <= 80 and seq // E * E > minutes()[0].seq + W)


def revised(revisions: RevisionBook | None, model: Model = RANDOM) -> MarketEngine:
    return MarketEngine(model, market(), MINUTE, revisions)


def test_each_candle_is_decided_under_the_calibration_of_its_day() -> None:
    origin, midnight = around_midnight()
    days = [candle.close_time_ns // NS_PER_DAY for candle in from_seq(origin - W, origin + E - 1)]
    one = revised(book(set(days)), Model(artifact(), Rules()))
    told = run(one, from_seq(origin - W, origin + E - 1))
    for day in sorted(set(days)):
        calibrated = Model(artifact(calibration=lines(0.3 * (day % 3) - 0.3)), Rules())
        other = run(engine(calibrated), from_seq(origin - W, origin + E - 1))
        begins, ends = (
            (midnight, origin + E) if day * NS_PER_DAY == midnight * MINUTE.interval_ns else (origin, midnight)
        )
        assert all(told[seq] == other[seq] for seq in range(begins, ends))
        assert {one.policy_for(seq) for seq in range(begins, ends)} == {
            policy_under(one.policy, lines(0.3 * (day % 3) - 0.3))
        }
    assert one.policy_for(midnight) != one.policy_for(midnight - 1)


def test_revisions_that_leave_everything_as_it_is_change_the_policy_and_nothing_else() -> None:
    origin, _ = around_midnight()
    same = RevisionBook("s")
    for day in {candle.close_time_ns // NS_PER_DAY for candle in minutes()}:
        same.add(day, (Calibration(), Calibration()))
    candles = from_seq(origin - W, origin + E)
    assert run(revised(same), candles) == run(engine(), candles)
    assert revised(same).policy_for(origin) != engine().policy_for(origin) == engine().policy


def test_the_side_held_over_midnight_does_not_depend_on_the_start() -> None:
    origin, midnight = around_midnight()
    days = range(minutes()[0].seq // 1440, minutes()[-1].seq // 1440 + 2)
    early, exact = revised(book(days)), revised(book(days))
    first = run(early, from_seq(origin - W - E, origin + E - 1))
    second = run(exact, from_seq(origin - W, origin + E - 1))
    assert set(range(midnight - 10, midnight + 10)) <= second.keys()
    assert encoded({seq: first[seq] for seq in second}) == encoded(second)
    plain = run(engine(), from_seq(origin - W, origin + E - 1))
    assert any(a.decision.side is not b.decision.side for a, b in zip(second.values(), plain.values(), strict=True)
               if isinstance(a, Answer) and isinstance(b, Answer))  # fmt: skip


def test_nothing_is_decided_before_the_days_revision_is_known() -> None:
    origin, midnight = around_midnight()
    today = midnight // 1440
    one = revised(book([today - 1]))
    answers = run(one, from_seq(origin - W, midnight - 1))
    assert answers
    assert one.calibration(midnight - 1) is not None
    assert one.calibration(midnight) is None
    with pytest.raises(AssertionError, match="day's revision"):
        one.advance(from_seq(midnight, midnight)[0], 0.0)


def test_a_peek_goes_under_the_calibration_of_the_forming_candles_day() -> None:
    origin, midnight = around_midnight()
    one = revised(book([midnight // 1440 - 1, midnight // 1440]))
    for candle in from_seq(origin - W, midnight + 3):
        if candle.seq >= midnight - 2:
            (peeked,) = peek([asked(one, candle)])
            answer = one.advance(candle, funding_of(candle))
            assert answer is not None
            assert answer.decision == peeked
        else:
            one.advance(candle, funding_of(candle))


def test_snapshots_under_other_revisions_are_told_apart_and_a_midnight_is_not() -> None:
    origin, midnight = around_midnight()
    days = [midnight // 1440 - 1, midnight // 1440]
    one = revised(book(days))
    before = one.key
    run(one, from_seq(origin - W, midnight + 1))
    assert one.key == before
    assert len({before, revised(book(days, "t")).key, engine().key, engine(Model(artifact(), Rules())).key}) == 4


def test_event_candles_have_no_revisions() -> None:
    with pytest.raises(AssertionError):
        MarketEngine(RANDOM, market(), EVENTS, RevisionBook("s"))
