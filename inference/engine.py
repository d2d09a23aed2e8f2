"""One market's model: folds closed candles, decides, peeks, and changes over between epochs.

The state a candle sees is defined, not accumulated. Epoch = floor(seq / E). The state for a candle is the fold over
the market's candles from W before its epoch's first ordinal (or from the market's first candle, where the listing
proves that there was none before). During the last W candles of an epoch a second fold is advanced beside the first and
takes over at the boundary. So the signal for a candle does not depend on when the daemon was started.

Event candles have the UTC day for an epoch; its fold begins with the last W candles of the day before. A day whose eve
is not known has none, unless it is the market's first.

With a guard on, a signal depends also on the model's sides of all candles since midnight, each from its own epoch's
fold. So what is folded for a candle reaches back to the fold of its day's first, and nothing is answered before the day
is known whole.

Pure: no clock, no files.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from operator import itemgetter
from typing import NamedTuple

import msgspec
import numpy as np

from feeds.market import NS_PER_DAY, SEQ_PER_DAY, Candle, CandleSpec, Market
from inference import guards, lstm
from inference.artifact import Artifact, Calibration
from inference.features import INDICATORS, N_FEATURES, N_INDICATORS, update
from inference.guards import Guard
from inference.revisions import RevisionBook, policy_under
from inference.signals import Decision, Outlook, Rules, Side, confirm, decide, market_policy, side_of
from inference.state import Fold
from inference.stopwatch import Stopwatch

_Folds = tuple[dict[str, object] | None, dict[str, object] | None]
_Snapshot = tuple[int, int, _Folds, list[tuple[Candle, float]], Guard | None]
_SIGMA = INDICATORS.index("sigma")
_READ = itemgetter(*map(INDICATORS.index, ("rsi", "macd_hist", "adx", "percent_b", "ema_fast", "ema_slow")))
_SNAPSHOT = 2
"""Version of the snapshot's layout."""


class Phase(StrEnum):
    """How far a market's model is."""

    COLD = "cold"
    WARMING = "warming"
    READY = "ready"


class Answer(NamedTuple):
    """A decision and the hash of all that went into it."""

    decision: Decision
    inputs_hash: str


class Model:
    """An artifact with the operator's rules: what all markets of a daemon share."""

    def __init__(self, artifact: Artifact, rules: Rules) -> None:
        manifest = artifact.manifest
        self.artifact, self.rules, self.weights = artifact, rules, artifact.weights
        self.id = artifact.model_id
        self.warmup, self.epoch = manifest.warmup, manifest.epoch
        weights = self.weights
        self.shape = (weights.members, weights.layers, weights.hidden)
        self._rooms: dict[int, _Room] = {}
        decisive = (rules, manifest.barrier_width, manifest.signal_horizon, manifest.calibration)
        self.policy = hashlib.blake2b(msgspec.json.encode(decisive, order="deterministic"), digest_size=8).hexdigest()

    def room(self, size: int) -> "_Room":
        """Return where to put a batch of `size` markets; what lies there is the last batch of any size."""
        room = self._rooms.get(size)
        if room is None:
            most = max(self._rooms, default=0)
            if size > most:
                most = max(size, 2 * most)
                self._rooms = {most: _Room.of(self.weights, most)}
            room = self._rooms[size] = self._rooms[most].first(size)
        return room

    def horizon(self, spec: CandleSpec) -> int:
        """Candles ahead that a signal of `spec` speaks of; the first horizon where the artifact does not name the spec.

        Such a spec is refused for signals; the candles of a tape may be asked for all the same.
        """
        manifest = self.artifact.manifest
        return manifest.signal_horizon.get(spec.text, manifest.horizons[0])


class _Room(NamedTuple):
    """Where a batch of B markets is put together and answered."""

    x: lstm.F32
    """[B, F]."""
    raw: lstm.F64
    """[B, indicators]."""
    h: lstm.F32
    c: lstm.F32
    y: lstm.F32

    @classmethod
    def of(cls, weights: lstm.Weights, size: int) -> "_Room":
        x, raw = np.empty((size, N_FEATURES), np.float32), np.empty((size, N_INDICATORS))
        h, c, y = weights.zeros(size), weights.zeros(size), weights.answers(size)
        return cls(x, raw, h, c, y)

    def first(self, size: int) -> "_Room":
        """Return the room of the first markets."""
        return _Room(self.x[:size], self.raw[:size], self.h[:size], self.c[:size], self.y[:size])


class MarketEngine:
    """The model's state for one market and candle spec."""

    def __init__(self, model: Model, market: Market, spec: CandleSpec, revisions: RevisionBook | None = None) -> None:
        """Set up; `revisions`, for time candles only, take the place of the artifact's own calibration."""
        assert revisions is None or spec.by_time, "the day of an event candle's revision is not told by its ordinal"
        self.model, self.market, self.spec, self.revisions = model, market, spec, revisions
        self.watch = Stopwatch()
        self.horizon = model.horizon(spec)
        self.policy = market_policy(model.policy, market.max_leverage)
        self._identity = f"{market.exchange}|{market.symbol}|{spec}|".encode()
        listed_ns = market.listed_at_ns
        self._first_seq = 0 if listed_ns is None or not spec.by_time else spec.seq_at(listed_ns) + 1
        self._epoch_number = -1
        self._current: Fold | None = None
        self._following: Fold | None = None
        self._guarded = model.rules.guarded
        self._guard: Guard | None = None
        self._tail: deque[tuple[Candle, float]] = deque(maxlen=0 if spec.by_time else model.warmup)
        self._x = np.zeros((1, N_FEATURES), np.float32)
        self._raw = np.zeros(N_INDICATORS)
        self._y = model.weights.answers(1)

    @property
    def key(self) -> str:
        """What a snapshot depends on besides the candles."""
        revised = f"/{self.revisions.source}" if self.revisions else ""
        return f"{self.model.id}/{self.policy}{revised}"

    def calibration(self, seq: int) -> tuple[Calibration, ...] | None:
        """Return what is in force for candle `seq`, per horizon; None while its day's revision is not known."""
        if self.revisions is None:
            return self.model.artifact.manifest.calibration
        return self.revisions.at(seq * self.spec.interval_ns)

    def policy_for(self, seq: int) -> str:
        """Hash what decides candle `seq` besides its inputs."""
        if self.revisions is None:
            return self.policy
        lines = self.calibration(seq)
        assert lines is not None, "nothing is said before the day's revision is known"
        return policy_under(self.policy, lines)

    def fold_start(self, seq: int) -> int:
        """Ordinal at which the fold for time candle `seq` begins."""
        first = guards.day_begin(seq, self.spec) if self._guarded else seq
        return self._start_of(first // self.model.epoch)

    @property
    def reach(self) -> int:
        """Candles that a fold has at most."""
        day = guards.candles_a_day(self.spec) if self._guarded and self.spec.by_time else 0
        return self.model.warmup + self.model.epoch + day

    def _start_of(self, epoch: int) -> int:
        return max(epoch * self.model.epoch - self.model.warmup, self._first_seq)

    @property
    def phase(self) -> Phase:
        """Cold before a fold began, warming until W candles are behind the present one, then ready.

        With a guard on also warming until the day's first candle, where the day so far is not known.
        """
        if self._ripe(self._current) and (self._guard is not None or not self._guarded):
            return Phase.READY
        return Phase.WARMING if self.folded else Phase.COLD

    @property
    def folded(self) -> int:
        """Candles behind the present fold, or behind the one that will take over where there is none."""
        fold = self._current or self._following
        return fold.folded if fold else 0

    def reset(self) -> None:
        """Forget everything; the next candle begins a fold where one may begin."""
        self._epoch_number, self._current, self._following, self._guard = -1, None, None, None
        self._tail.clear()

    def advance(self, candle: Candle, funding: float) -> Answer | None:
        """Fold a closed candle; return what it decides once the model is ready.

        `funding`: what a long pays within the horizon, as a fraction. Candles must come in unbroken order of `seq`,
        voids through `skip`, and their `calibration` must be known.
        """
        self.watch.begin()
        self._turn(candle.seq)
        if self._tail.maxlen:
            self._tail.append((candle, funding))
        if self._following is not None:
            self._fold(self._following, candle, funding)
        if self._current is None:
            return None
        if self._current.folded < self.model.warmup:
            self._fold(self._current, candle, funding)
            return None
        decision = self._folded(self._current, candle, funding)
        if not self._guarded:
            return Answer(decision, self._current.inputs_hash)
        if (guard := self._guard_for(candle.seq, self._current)) is None:
            return None
        self._guard = self._follow(guard, candle, decision)
        return Answer(guards.guarded(decision, self._guard), self._guard.hash_with(self._current.chain))

    def skip(self, seq: int) -> str | None:
        """Fold the fact that the exchange has no candle `seq`; return the inputs hash once ready."""
        self._turn(seq)
        for fold in (self._following, self._current):
            if fold is not None:
                fold.link_void(seq)
        if self._current is None or not self._ripe(self._current):
            return None
        if not self._guarded:
            return self._current.inputs_hash
        if (guard := self._guard_for(seq, self._current)) is None:
            return None
        self._guard = guards.pass_over(guard, seq)
        return self._guard.hash_with(self._current.chain)

    def _ripe(self, fold: Fold | None) -> bool:
        return fold is not None and fold.folded > self.model.warmup

    def _guard_for(self, seq: int, fold: Fold) -> Guard | None:
        """Return the day's ledger before candle `seq` of a ripe `fold`; None: the day's first candles are not known.

        A fold that holds the market's very first candle, or an event candle's day, says that there was no word before.
        """
        if self.spec.by_time and seq == guards.day_begin(seq, self.spec):
            return guards.begin(seq)
        is_whole = not self.spec.by_time or fold.start_seq == self._first_seq > 0
        return guards.begin(seq) if self._guard is None and is_whole else self._guard

    def _follow(self, guard: Guard, candle: Candle, decision: Decision) -> Guard:
        rules = self.model.rules
        return guards.follow(guard, seq=candle.seq, close=candle.close, wanted=decision.side, rules=rules)

    def _turn(self, seq: int) -> None:
        """Change over at an epoch's boundary, and begin the folds that begin at `seq`."""
        if not self.spec.by_time:
            return self._turn_day(seq)
        assert self._current is None or seq == self._current.seq + 1, "a fold has no holes"
        epoch = seq // self.model.epoch
        if epoch != self._epoch_number:
            self._epoch_number, self._current, self._following = epoch, self._following, None
        if self._current is None and seq == self._start_of(epoch):
            self._current = self._begin(seq)
        if self._following is None and seq == self._start_of(epoch + 1):
            self._following = self._begin(seq)
        return None

    def _turn_day(self, seq: int) -> None:
        day, number = divmod(seq, SEQ_PER_DAY)
        if day == self._epoch_number:
            return
        eve, listed_ns = self._epoch_number * SEQ_PER_DAY, self.market.listed_at_ns
        follows = 0 <= self._epoch_number == day - 1
        self._epoch_number, self._current, self._guard = day, None, None
        tail = [(candle, funding) for candle, funding in self._tail if follows and candle.seq > eve]
        if len(tail) == self._tail.maxlen or (tail and tail[0][0].seq == eve + 1):
            self._current = self._begin(tail[0][0].seq)
            for candle, funding in tail:
                self._fold(self._current, candle, funding)
        elif number == 1 and listed_ns is not None and listed_ns // NS_PER_DAY == day:
            self._current = self._begin(seq)

    def _begin(self, seq: int) -> Fold:
        return Fold(seq, self.model.shape, self._identity)

    def _fold(self, fold: Fold, candle: Candle, funding: float) -> None:
        """Fold a candle about which nothing is to be said."""
        outlook = self._advance(fold, candle, funding)
        fold.side = side_of(outlook, held=fold.side, funding=funding, rules=self.model.rules)

    def _folded(self, fold: Fold, candle: Candle, funding: float) -> Decision:
        """Fold a candle and decide."""
        decision = self._decide(self._advance(fold, candle, funding), self._raw, fold.side, funding)
        fold.side = decision.side
        return decision

    def _advance(self, fold: Fold, candle: Candle, funding: float) -> Outlook:
        began_ns = self.watch.now_ns()
        self._features(fold.features, candle)
        done_ns = self.watch.now_ns()
        lstm.step(self.model.weights, self._x, fold.h[None], fold.c[None], self._y)
        self.watch.features_ns += done_ns - began_ns
        self.watch.step_ns += self.watch.now_ns() - done_ns
        fold.link(candle, funding)
        return self._outlook(candle.seq, self._y, self._x[0], self._raw)

    def _features(self, state: lstm.F64, candle: Candle) -> None:
        c, interval_ns = candle, self.spec.interval_ns  # 0 for event candles
        update(state, c.open, c.high, c.low, c.close, c.volume, c.close_time_ns, interval_ns, self._x[0], self._raw)

    def _outlook(self, seq: int, y: lstm.F32, x: lstm.F32, raw: lstm.F64) -> Outlook:
        calibration = self.calibration(seq)
        assert calibration is not None, "nothing is decided before the day's revision is known"
        expected = self.model.artifact.expect(y, self.horizon, calibration)
        scale_bps = 1e4 * raw.item(_SIGMA) * self.horizon**0.5
        return Outlook(
            p_touch=expected.p_touch,
            p_up=expected.p_up,
            barrier_bps=self.model.artifact.manifest.barrier_width * scale_bps,
            volatility_bps=scale_bps * expected.volatility_ratio,
            in_range=self.model.artifact.in_range(x),
        )

    def _decide(self, outlook: Outlook, raw: lstm.F64, held: Side, funding: float) -> Decision:
        rsi, macd_hist, adx, percent_b, ema_fast, ema_slow = _READ(raw.tolist())
        trend = ema_fast / ema_slow - 1.0
        confirmations = confirm(rsi=rsi, macd_hist=macd_hist, adx=adx, percent_b=percent_b, trend=trend)
        return decide(
            outlook,
            held=held,
            funding=funding,
            rules=self.model.rules,
            confirmations=confirmations,
            contract_leverage=self.market.max_leverage,
        )

    def snapshot(self) -> bytes:
        """Write the whole state down, exactly."""
        folds = [fold.pack() if fold else None for fold in (self._current, self._following)]
        tail = [(msgspec.to_builtins(candle), funding) for candle, funding in self._tail]
        return msgspec.msgpack.encode((_SNAPSHOT, self._epoch_number, folds, tail, self._guard))

    def restore(self, snapshot: bytes) -> None:
        """Read back what `snapshot` wrote.

        Raises:
            ValueError: it is damaged, or of another layout or model size; refold the journal instead.

        """
        try:
            version, epoch, folds, tail, guard = msgspec.msgpack.decode(snapshot, type=_Snapshot)
            if version != _SNAPSHOT:
                raise ValueError(f"the snapshot has layout {version}, this is {_SNAPSHOT}")
            current, following = (Fold.unpack(raw, self.model.shape) if raw else None for raw in folds)
        except msgspec.DecodeError as error:
            raise ValueError(f"the snapshot cannot be read: {error}") from error
        self._epoch_number, self._current, self._following, self._guard = epoch, current, following, guard
        self._tail.clear()
        self._tail.extend(tail)

    def _fold_for(self, seq: int) -> Fold:
        """Return the fold that candle `seq`, the next one, will be folded into."""
        changes_over = self.spec.by_time and seq // self.model.epoch != self._epoch_number
        fold = self._following if changes_over else self._current
        assert fold is not None
        return fold

    def _peeked(self, candle: Candle, fold: Fold, decision: Decision) -> Decision:
        """Return what the guard would leave of a decision on the next candle."""
        guard = self._guard_for(candle.seq, fold) if self._guarded else None
        return decision if guard is None else guards.guarded(decision, self._follow(guard, candle, decision))


class Peek(NamedTuple):
    """One question to `peek`: what would be said if this forming candle closed now."""

    engine: MarketEngine
    candle: Candle
    funding: float


def peek(questions: Sequence[Peek]) -> list[Decision]:
    """Answer for many markets of one model in a single batch, leaving every state as it is.

    Every engine must be ready, its candle the next one and `calibration` known for it; an event candle must not be the
    first of its day.
    """
    if not questions:
        return []
    model = questions[0].engine.model
    x, raw, h, c, y = model.room(len(questions))
    folds = []
    for i, (engine, candle, _) in enumerate(questions):
        fold = engine._fold_for(candle.seq)
        engine._features(fold.features.copy(), candle)
        x[i], raw[i], h[i], c[i] = engine._x[0], engine._raw, fold.h, fold.c
        folds.append(fold)
    lstm.peek(model.weights, x, h, c, y)
    return [
        q.engine._peeked(
            q.candle,
            fold,
            q.engine._decide(q.engine._outlook(q.candle.seq, y[i : i + 1], x[i], raw[i]), raw[i], fold.side, q.funding),
        )
        for i, (q, fold) in enumerate(zip(questions, folds, strict=True))
    ]
