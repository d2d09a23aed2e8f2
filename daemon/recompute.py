"""Messages that are no longer kept, made again: they are a fold over the journal, so they are the same. Pure.

They go under the model, the rules and the calibrations in force now. The fold of event candles begins with the last of
the day before, so which days can be told depends on where the journal's days begin and end.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from daemon.line import Cause, Draft, Line, Ordinal
from daemon.topics import Context
from feeds.market import NS_PER_DAY, SEQ_PER_DAY
from inference.engine import MarketEngine


class Span(NamedTuple):
    """The first and the last of consecutive ordinals."""

    first: int
    last: int


def first_possible(line: Line, from_seq: int, *, oldest: int) -> int:
    """Return the first ordinal from `from_seq` on whose fold is in the journal, which begins with `oldest`."""
    epoch, interval_ns = line.engine.model.epoch, line.spec.interval_ns
    seq = max(from_seq, oldest)
    while seq < line.next_seq:
        start = line.engine.fold_start(seq)
        if start >= oldest and line.funding.reaches(start * interval_ns):
            break
        seq = (seq // epoch + 1) * epoch
    return seq


def day_possible(line: Line, from_seq: int, days: Mapping[int, Span]) -> Span | None:
    """Return the journal of the first UTC day of an event line that has a signal to be told, from its fold's begin on.

    The day does not end before `from_seq`. `days`: what the journal holds of each. Funding need not be known: event
    candles are charged none.
    """
    warmup, listed_ns = line.engine.model.warmup, line.market.listed_at_ns
    for day in sorted(day for day, span in days.items() if span.last >= from_seq):
        span, eve = days[day], days.get(day - 1)
        if eve and (eve.first % SEQ_PER_DAY == 1 or eve.last - eve.first >= warmup - 1):
            whole = Span(max(eve.first, eve.last - warmup + 1), span.last)
        elif span.first % SEQ_PER_DAY == 1 and listed_ns is not None and listed_ns // NS_PER_DAY == day:
            whole = span
        else:
            continue
        known = eve.last - whole.first + 1 if eve else 0
        if known + span.last % SEQ_PER_DAY > warmup:
            return whole
    return None


def messages(line: Line, journal: Sequence[Ordinal], first: int) -> list[Draft]:
    """Make the messages of a line from ordinal `first` to the journal's last; `line` itself is left as it is.

    `journal`: from the first ordinal of the fold for `first` on; of an event line it ends with that day.
    """
    model, revisions = line.engine.model, line.engine.revisions
    twin = Line(
        base_topic=line.base_topic,
        market=line.market,
        spec=line.spec,
        engine=MarketEngine(model, line.market, line.spec, revisions),
        funding=copy.deepcopy(line.funding),
        context=Context,
    )
    if line.spec.by_time:
        twin.begin(newest_seq=first, stream_seq=first - 1, journal=[])
    elif journal:
        day = journal[-1].seq // SEQ_PER_DAY
        # A market's very first day begins with a message too: the line was taken up on the day before.
        twin.next_seq = min(journal[0].seq, day * SEQ_PER_DAY - 1)
        twin.publish_from = day * SEQ_PER_DAY
    for row in journal:
        cause = Cause(row.seq * line.spec.interval_ns)
        if row.candle is None:
            twin.offer_void(row.seq, cause)
        else:
            twin.offer(row.candle, cause)
    return [draft for draft in twin.take_work().drafts if draft.seq >= first]
