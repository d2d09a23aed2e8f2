"""Messages that are no longer kept, made again: they are a fold over the journal, so they are the same. Pure.

They go under the model, the rules and the calibrations in force now. Event candles are left out: what their fold begins
with is not told by the ordinal.
"""

import copy
from collections.abc import Sequence

from daemon.line import Cause, Draft, Line, Ordinal
from daemon.topics import Context
from inference.engine import MarketEngine


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


def messages(line: Line, journal: Sequence[Ordinal], first: int) -> list[Draft]:
    """Make the messages of a time line from ordinal `first` to the journal's last; `line` itself is left as it is.

    `journal`: from the first ordinal of the fold for `first` on.
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
    twin.begin(newest_seq=first, stream_seq=first - 1, journal=[])
    for row in journal:
        cause = Cause(row.seq * line.spec.interval_ns)
        if row.candle is None:
            twin.offer_void(row.seq, cause)
        else:
            twin.offer(row.candle, cause)
    return twin.take_work().drafts
