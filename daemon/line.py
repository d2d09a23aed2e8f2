"""One market's candles of one spec, from closed candle to durable message: the ledger of ordinals. Pure.

A line takes closed candles from wherever they come (trades, the exchange's klines, backfill, the journal), folds them
strictly in order of their ordinals, and produces exactly one message for each. A missing ordinal is a hole: what
follows waits behind it, and `missing` says what to ask the exchange for.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from daemon import topics
from daemon.topics import Context, Signal, Void
from feeds.market import NS_PER_DAY, NS_PER_S, SEQ_PER_DAY, Candle, CandleSpec, Market, Origin
from inference.engine import Answer, MarketEngine
from inference.funding import FundingBook

VOID_SPACING_NS = 30 * NS_PER_S
"""Two reads this far apart by the exchange's clock must lack a candle, before it counts as one that does not exist."""
MIN_VALID_NS = NS_PER_S
"""A signal on an event candle is valid for at least this long."""
RECENT = 4
"""Folded candles that stay at hand where a journal keeps all of them."""


class Ordinal(msgspec.Struct, frozen=True):
    """One ordinal of a line: its candle, or None where there is none."""

    seq: int
    candle: Candle | None


class Snapshot(NamedTuple):
    """A line's state after the candle `seq`."""

    seq: int
    state: bytes


class Draft(msgspec.Struct, frozen=True):
    """A durable message whose context is still to be completed by the shell."""

    seq: int
    kind: str
    topic: str
    time_ns: int
    """Close of the candle, by the exchange."""
    valid_until_ns: int
    identity: bytes
    context: Context
    receive_time_ns: int
    """When the event that caused it was received; 0 if it was not received live."""
    drafted_ns: int = 0
    """When it was written, by the same clock."""


class Mismatch(msgspec.Struct, frozen=True):
    """A candle of ours beside the exchange's own of the same ordinal, whose figures stand."""

    ours: Candle | None
    """None: we had found that there was none."""
    official: Candle
    repaired: bool
    """Whether ours had been folded already, so that journal and state were repaired after its signal."""


class LineWork(msgspec.Struct):
    """What a line has done since it was last asked: to be committed in one transaction."""

    rows: list[Ordinal]
    drafts: list[Draft]
    candles: list[Candle]
    """Newly closed candles, for the candle topic; the warm-up's are no news."""
    mismatches: list[Mismatch]
    """Candles that were not the exchange's own."""


class Cause(msgspec.Struct, frozen=True):
    """Why a candle arrives now."""

    event_time_ns: int
    """The exchange's time of the evidence."""
    receive_time_ns: int = 0
    """When the event was received; 0 for what was fetched."""
    void_reason: str = "exchange_has_no_candle"


Journal = Callable[[str, int, int], Sequence[Ordinal]]
"""Reads what was committed of a line, by its name, from one ordinal to another, ascending."""


class Line:
    """The ledger of one market and spec."""

    def __init__(
        self,
        *,
        base_topic: str,
        market: Market,
        spec: CandleSpec,
        engine: MarketEngine,
        funding: FundingBook,
        context: Callable[[], Context],
        worked: Callable[["Line"], None] = lambda _: None,
        journal: Journal | None = None,
    ) -> None:
        """Set up; `context` gives what the market says beside its candles when a message is written.

        `worked` is told when there is something to take, or more of it. Whoever gives a `journal` commits the rows of
        what is taken before it is read again; without one all candles that may be folded again are kept here.
        """
        self.market, self.spec, self.engine, self.funding = market, spec, engine, funding
        self.key = (market.exchange, market.symbol)
        self.name = f"{market.exchange}|{market.symbol}|{spec}"
        self.base_topic = base_topic
        self.topic = topics.spec_topic(base_topic, market, spec, "signal")
        self.live_topic = topics.spec_topic(base_topic, market, spec, "live")
        self.next_seq = 0
        """The ordinal that is folded next; 0 until `begin`."""
        self.publish_from = 0
        self.newest_ns = 0
        """Close of the newest folded candle."""
        self.waits_for_funding = False
        self.waits_for_calibration = False
        model = engine.model
        self._span = engine.reach + model.epoch
        """So far back candles are compared and folded again."""
        self._journal = journal
        self._history: deque[Ordinal] = deque(maxlen=RECENT if journal else self._span)
        self._first_own: int | None = None
        self._waiting: dict[int, tuple[Ordinal, Cause]] = {}
        self._absent: dict[int, int] = {}
        self._owed: int | None = None
        """The first ordinal that still has no message; None before the stream begins."""
        self._context, self._worked = context, worked
        self._work = LineWork([], [], [], [])
        self._leading_gap = False

    @property
    def model_key(self) -> str:
        """What a snapshot depends on besides the candles."""
        return self.engine.key

    @property
    def next_open_ns(self) -> int:
        """Where the trades of the next candle begin; event candles are counted from the start of their day."""
        if self.spec.by_time:
            return (self.next_seq - 1) * self.spec.interval_ns
        return self.next_seq // SEQ_PER_DAY * NS_PER_DAY

    # ---- beginning

    def first_needed(self, newest_seq: int, stream_seq: int | None) -> int:
        """Return the first ordinal of the fold that the next message needs."""
        after = stream_seq + 1 if stream_seq is not None else newest_seq
        return self.engine.fold_start(min(max(after, newest_seq - self.engine.model.epoch + 1), newest_seq))

    def begin(
        self,
        *,
        newest_seq: int,
        stream_seq: int | None,
        journal: list[Ordinal],
        snapshots: Sequence[Snapshot] = (),
    ) -> None:
        """Take up a time line where it was left, or where the fold for its newest closed candle begins.

        `newest_seq`: the newest candle that has closed by the exchange's clock. `stream_seq`: the newest ordinal that
        has a message. At most one epoch is made up for; what lies before it becomes one gap message. Of `snapshots`,
        newest first, the first that can be used saves folding the journal's rows up to it.
        """
        after = stream_seq + 1 if stream_seq is not None else newest_seq
        self.publish_from = max(after, newest_seq - self.engine.model.epoch + 1)
        start = self.first_needed(newest_seq, stream_seq)
        rows = [row for row in journal if row.seq >= start]
        contiguous = bool(rows) and rows[0].seq == start and rows[-1].seq - start == len(rows) - 1
        self.next_seq = start
        self._leading_gap = not contiguous
        if stream_seq is not None:
            self._owe(after, self.publish_from, "absent_too_long")
        if contiguous:
            self._replay(rows, snapshots)
        self._take_what_waits()

    def _replay(self, rows: list[Ordinal], snapshots: Sequence[Snapshot]) -> None:
        known_to = self._restore(snapshots, rows[0].seq - 1, rows[-1].seq)
        for row in rows:
            if known_to is None or row.seq > known_to:
                if row.seq > self.next_seq or self.engine.calibration(row.seq) is None:
                    self._waiting[row.seq] = (row, Cause(0))  # folded once the revision of its day is known
                    continue
                self._advance(row)
            self._remember(row)
        self.drain()

    def _restore(self, snapshots: Sequence[Snapshot], first: int, last: int) -> int | None:
        """Take over the first usable snapshot of an ordinal from `first` to `last`; return that, or None."""
        within = (snapshot for snapshot in snapshots if first <= snapshot.seq <= last)
        return next((snapshot.seq for snapshot in within if self._restored(snapshot.state)), None)

    def _take_what_waits(self) -> None:
        """Fold what has closed before the line was taken up, and forget what lies behind it."""
        self._waiting = {seq: waiting for seq, waiting in self._waiting.items() if seq >= self.next_seq}
        self.drain()

    def _restored(self, snapshot: bytes) -> bool:
        self.engine.reset()
        try:
            self.engine.restore(snapshot)
        except ValueError:
            return False  # another layout wrote it: the journal says the same
        return True

    def begin_events(
        self,
        *,
        stream_seq: int | None,
        first_day: int,
        journal: Sequence[Ordinal] = (),
        snapshots: Sequence[Snapshot] = (),
    ) -> None:
        """Take up an event line where it was left, or at the beginning of `first_day`.

        Candles are numbered within the UTC day, so the trades of a day are always read from its start. `journal` is the
        line's since `first_day`, `snapshots` states after candles of it, newest first. Without one that can be used the
        fold begins with the day, and messages a day later, as the state for a day's candles asks for the day before;
        unless the market was listed on `first_day`.
        """
        known_to = self._restore(snapshots, journal[0].seq, journal[-1].seq) if journal else None
        if known_to is not None:
            for row in journal:
                if row.seq > known_to:
                    self._advance(row)
            self.next_seq = journal[-1].seq + 1
            self.publish_from = self.next_seq if stream_seq is None else stream_seq + 1
            self._take_what_waits()
            return
        listed_ns = self.market.listed_at_ns
        known_day = first_day if listed_ns is not None and listed_ns // NS_PER_DAY >= first_day else first_day + 1
        self.next_seq = first_day * SEQ_PER_DAY + 1
        self.publish_from = known_day * SEQ_PER_DAY
        if stream_seq is not None:
            self.publish_from = max(stream_seq + 1, self.publish_from)
            self._owe(stream_seq + 1, self.publish_from, "absent_too_long")
        if journal and journal[0].seq == self.next_seq:
            self._waiting |= {row.seq: (row, Cause(0)) for row in journal}
        self._take_what_waits()

    def begin_with_first(self) -> None:
        """Take up a time line at the oldest candle offered so far: nobody can say what came before it."""
        if not self.next_seq and self._waiting:
            self.next_seq = self.publish_from = min(self._waiting)
            self.drain(self._waiting[self.next_seq][1])

    # ---- candles

    def offer(self, candle: Candle, cause: Cause) -> None:
        """Take a closed candle, in any order; fold all that are now contiguous."""
        if candle.seq >= self.next_seq:
            self._waiting[candle.seq] = (Ordinal(candle.seq, candle), cause)
            self.drain(cause)

    def offer_void(self, seq: int, cause: Cause) -> None:
        """Take the finding that there is no candle `seq`; one that has come meanwhile stands."""
        if seq >= self.next_seq and seq not in self._waiting:
            self._waiting[seq] = (Ordinal(seq, None), cause)
            self.drain(cause)

    def drain(self, cause: Cause | None = None) -> None:
        """Fold every waiting ordinal that is next; those that did not come with `cause` had to wait, and are late."""
        self._open_day()
        while waiting := self._waiting.get(self.next_seq):
            row, arrived = waiting
            self.waits_for_calibration = self.engine.calibration(row.seq) is None
            if self.waits_for_calibration:
                return
            charge = 0.0
            if row.candle is not None:
                known = self._charge(row.candle)
                self.waits_for_funding = known is None
                if known is None:
                    return
                charge = known
            del self._waiting[self.next_seq]
            self._fold(row, charge, arrived, late=arrived is not cause or not arrived.receive_time_ns)
            self._open_day()

    def _open_day(self) -> None:
        """Event lines: go on with the next day's first candle once it is there."""
        if self.spec.by_time or not self._waiting or self.next_seq in self._waiting:
            return
        first = min(self._waiting)
        if first % SEQ_PER_DAY == 1 and first > self.next_seq:
            if first - 1 >= self.publish_from:
                day_ns = first // SEQ_PER_DAY * NS_PER_DAY
                self._void("day", first - 1, first - 1, day_ns, "day_begins", "", Cause(day_ns))
                self._owed = first
            self.next_seq = first

    def _fold(self, row: Ordinal, charge: float, cause: Cause, *, late: bool) -> None:
        answer, void_hash = self._advance(row, charge)
        self._remember(row)
        self._leading_gap = False
        self._worked(self)
        self._work.rows.append(row)
        if row.seq < self.publish_from:
            return
        if row.candle is not None:
            self._work.candles.append(row.candle)
        if answer is None and void_hash is None:
            return
        self._owe(self._owed, row.seq, "model_not_ready")
        self._owed = row.seq + 1
        if answer is not None and row.candle is not None:
            self._signal(row.candle, answer, cause, late=late)
        elif void_hash is not None:
            close_ns = row.seq * self.spec.interval_ns
            policy = self.engine.policy_for(row.seq)
            self._void("void", row.seq, row.seq, close_ns, cause.void_reason, void_hash, cause, policy)

    def _advance(self, row: Ordinal, charge: float | None = None) -> tuple[Answer | None, str | None]:
        if row.candle is None:
            return None, self.engine.skip(row.seq)
        if charge is None:
            charge = self._charge(row.candle)
        assert charge is not None, "the funding book is loaded before a line begins"
        return self.engine.advance(row.candle, charge), None

    def _charge(self, candle: Candle) -> float | None:
        return self.funding.charge(candle.close_time_ns, self.engine.horizon * self.spec.interval_ns)

    def _remember(self, row: Ordinal) -> None:
        self._history.append(row)
        self.next_seq = row.seq + 1
        if row.candle is not None:
            self.newest_ns = row.candle.close_time_ns
            if self._first_own is None and row.candle.origin is Origin.TRADES:
                self._first_own = row.seq

    def first_own(self) -> int:
        """Return the oldest ordinal at hand whose candle is of our own making; the next one where there is none."""
        return self.next_seq if self._first_own is None else max(self._first_own, self.next_seq - self._span)

    def is_own(self, seq: int) -> bool:
        """Tell whether a folded candle is of our own making."""
        row = self._row(seq)
        return row is not None and row.candle is not None and row.candle.origin is Origin.TRADES

    def _row(self, seq: int) -> Ordinal | None:
        """Return a folded ordinal; it is nearly always one of the newest."""
        for row in reversed(self._history):
            if row.seq <= seq:
                return row if row.seq == seq else None
        return next(iter(self._rows(seq, seq)), None) if self._journal else None

    def _rows(self, first: int, last: int) -> list[Ordinal]:
        """Return folded ordinals, ascending, as they are committed or will be."""
        known = {row.seq: row for row in self._journal(self.name, first, last)} if self._journal else {}
        known.update((row.seq, row) for row in (*self._work.rows, *self._history) if first <= row.seq <= last)
        return [known[seq] for seq in sorted(known)]

    def audit(self, official: Candle) -> bool:
        """Set a folded candle against the exchange's; on a difference repair journal and state.

        Return whether they agree.
        """
        waiting = self._waiting.get(official.seq)
        if waiting and waiting[0].candle and not waiting[0].candle.same_figures(official):
            self._waiting[official.seq] = (Ordinal(official.seq, official), waiting[1])
            self.differs(waiting[0].candle, official)
            return False
        found = self._row(official.seq) if official.seq >= self.next_seq - self._span else None
        if found is None:
            return True
        mine = found.candle
        if mine is not None and mine.same_figures(official):
            return True
        row = Ordinal(official.seq, msgspec.structs.replace(official, origin=Origin.REPAIRED))
        for at, known in enumerate(self._history):
            if known.seq == row.seq:
                self._history[at] = row
        self._work.rows.append(row)
        self.differs(mine, official, repaired=True)
        self._refold()
        return False

    def differs(self, ours: Candle | None, official: Candle, *, repaired: bool = False) -> None:
        """Note that a candle of ours was not the exchange's."""
        self._worked(self)
        self._work.mismatches.append(Mismatch(ours, official, repaired))

    def _refold(self) -> None:
        rows = self._rows(self.engine.fold_start(self.next_seq - 1), self.next_seq - 1)
        self.engine.reset()
        for row in rows:
            self._advance(row)

    # ---- holes

    def missing(self, final_ns: int) -> tuple[int, int] | None:
        """Return the first hole (first and last ordinal) among the candles that had closed by `final_ns`.

        `final_ns`: the exchange's time less the time that a row takes to be final.
        """
        if not self.next_seq or self.next_seq in self._waiting:
            return None
        last = min([seq - 1 for seq in self._waiting] + [self.spec.seq_at(final_ns)])
        return (self.next_seq, last) if last >= self.next_seq else None

    def backfill(self, candles: list[Candle], asked: tuple[int, int], asked_at_ns: int, *, by_hand: bool) -> None:
        """Take what the exchange had of the ordinals `asked`; settle what it lacks.

        `by_hand`: the hole was an outage, not the warm-up, so its candles count as repaired.
        """
        cause = Cause(asked_at_ns)
        origin = Origin.REPAIRED if by_hand else Origin.EXCHANGE
        have = {candle.seq: candle for candle in candles}
        if self._leading_gap and have and self.next_seq not in self._waiting and min(have) > self.next_seq:
            # The exchange's history begins later than the fold would: what is not known is not made up.
            self.next_seq = min(have)
        for seq in range(asked[0], max(have, default=asked[0] - 1)):
            if seq not in have and seq >= self.next_seq:
                first_ns = self._absent.setdefault(seq, asked_at_ns)
                if asked_at_ns - first_ns >= VOID_SPACING_NS:
                    self.offer_void(seq, cause)
        for seq in sorted(have):
            self.offer(msgspec.structs.replace(have[seq], origin=origin), cause)
        self._absent = {seq: ns for seq, ns in self._absent.items() if seq >= self.next_seq}

    def void_holes(self, cause: Cause) -> None:
        """Settle that what lies before a waiting ordinal will never come."""
        while self._waiting and self.next_seq not in self._waiting:
            self.offer_void(self.next_seq, cause)

    # ---- messages

    def take_work(self) -> LineWork:
        """Hand over what was done, for the shell to commit."""
        work, self._work = self._work, LineWork([], [], [], [])
        return work

    def _owe(self, first: int | None, then: int, reason: str) -> None:
        """Cover the ordinals from `first` to the one before `then`, which is next to have a message of its own."""
        if first is not None and first < then:
            time_ns = (then - 1) * self.spec.interval_ns if self.spec.by_time else then // SEQ_PER_DAY * NS_PER_DAY
            self._void("gap", first, then - 1, time_ns, reason, "", Cause(time_ns))
        self._owed = then

    def _identity(self, seq: int, inputs_hash: str, policy: str) -> dict[str, str | int]:
        model = self.engine.model
        return {
            "id": topics.signal_id(self.market, self.spec, seq, model.id, policy, inputs_hash),
            "seq": seq,
            "exchange": self.market.exchange,
            "symbol": self.market.symbol,
            "spec": self.spec.text,
            "model": model.id,
            "policy": policy,
            "inputs_hash": inputs_hash,
        }

    def _signal(self, candle: Candle, answer: Answer, cause: Cause, *, late: bool) -> None:
        valid_ns = self.spec.interval_ns or max(MIN_VALID_NS, candle.close_time_ns - candle.open_time_ns)
        decision = answer.decision
        payload = Signal(
            **self._identity(candle.seq, answer.inputs_hash, self.engine.policy_for(candle.seq)),  # type: ignore[arg-type]
            **msgspec.structs.asdict(decision),
            close_time=topics.rfc3339(candle.close_time_ns),
            valid_until=topics.rfc3339(candle.close_time_ns + valid_ns),
            horizon_candles=self.engine.horizon,
            reference_price=candle.close,
            context=Context(),
        )
        self._draft(payload, candle.close_time_ns, valid_ns, cause, origin=candle.origin, late=late)

    def _void(
        self,
        kind: str,
        first: int,
        last: int,
        close_ns: int,
        reason: str,
        inputs_hash: str,
        cause: Cause,
        policy: str | None = None,
    ) -> None:
        """Draft a message without a decision; one on many ordinals is under no day's revision, so `policy` is None."""
        payload = Void(
            kind=kind,  # type: ignore[arg-type]
            **self._identity(last, inputs_hash, policy or self.engine.policy),  # type: ignore[arg-type]
            from_seq=first,
            to_seq=last,
            close_time=topics.rfc3339(close_ns),
            valid_until=topics.rfc3339(close_ns + self.spec.interval_ns),
            reasons=[reason],
            context=Context(),
        )
        if kind == "gap":
            named = (self.market.exchange, self.market.symbol, self.spec.text)
            payload.id = topics.gap_id(*named, first, last, payload.model, payload.policy)
        self._draft(payload, close_ns, self.spec.interval_ns, cause, origin=None, late=True)

    def _draft(
        self, payload: Signal | Void, close_ns: int, valid_ns: int, cause: Cause, *, origin: str | None, late: bool
    ) -> None:
        context = self._context()
        context.origin = origin
        context.event_time = topics.rfc3339(cause.event_time_ns) if cause.event_time_ns else None
        context.late = late
        drafted_ns, receive_ns = self.engine.watch.now_ns(), 0 if late else cause.receive_time_ns
        if drafted_ns and receive_ns:
            context.stages_us = self.engine.watch.stages_us(
                event_time_ns=cause.event_time_ns, receive_time_ns=receive_ns, drafted_ns=drafted_ns
            )
        self._worked(self)
        self._work.drafts.append(
            Draft(
                seq=payload.seq,
                kind=payload.kind,
                topic=self.topic,
                time_ns=close_ns,
                valid_until_ns=close_ns + valid_ns,
                identity=topics.identity_of(payload),
                context=context,
                receive_time_ns=receive_ns,
                drafted_ns=drafted_ns,
            )
        )
