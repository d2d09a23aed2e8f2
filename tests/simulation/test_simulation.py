"""Fifty schedules of faults pass without a follower noticing; and bugs planted on purpose are noticed."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import msgspec
import pytest

from daemon.pipeline import MarketPipeline
from daemon.store import LineCommit, OutboxRow, Store
from feeds.closing import Closer
from feeds.stitch import Stitch
from tests.simulation import run
from tests.simulation.__main__ import REPEAT
from tests.simulation.run import Diverged, play, reference, simulate
from tests.simulation.schedule import KINDS, Fault

SEEDS = 50
FOUND = {
    32: "a mark price before a market was taken up hid the first candles of its small specs from it for ever",
    34: "a wall clock set back, and a wait that the exchange had asked for lasted as long as the clock was off",
    207: "of two connections one came back later, and the other's trades waited while mark prices closed their candle",
    283: "of two connections one was read first, and its trades waited likewise",
    568: "a disk that failed once more while the daemon took its leave: its status went on saying online",
    960: "a broker that had acknowledged nothing, was given up, and heard no goodbye: likewise",
    433: "an exchange that answers nonsense, and the daemon told its operator that the symbol does not exist",
}
"""Seeds that once diverged, and of what."""


def seeded(seed: int) -> run.Outcome:
    try:
        return simulate(seed)
    except Diverged as error:
        pytest.fail(f"{error}\n{REPEAT.format(seed=seed)}")


def test_fifty_schedules_go_unnoticed() -> None:
    tally: Counter[str] = Counter()
    for seed in range(SEEDS):
        tally += seeded(seed).fired
    unseen = KINDS.keys() - {"none", "broker_restart", "broker_wipe"} - tally.keys()
    assert len(unseen) <= 3, f"hardly anything went wrong: {sorted(unseen)} never"
    assert tally.total() >= 4 * SEEDS


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_once_found_stays_mended(seed: int) -> None:
    seeded(seed)


def test_a_seed_is_one_run() -> None:
    def played() -> list[tuple[float, str, dict[str, object]]]:
        with mock.patch.object(run, "compare", side_effect=Diverged("enough")), pytest.raises(Diverged):
            simulate(7)
        return list(run.LAST)

    assert played() == played()


def test_the_undisturbed_run_is_gapless_and_crosses_epochs() -> None:
    for topic, stream in reference(0).items():
        seqs = list(stream)
        assert seqs == list(range(seqs[0], seqs[-1] + 1))
        assert seqs[0] // run.EPOCH < seqs[-1] // run.EPOCH, topic
        assert all('"kind": "signal"' in identity for identity in stream.values())


# ---- planted bugs


@contextmanager
def state_before_outbox() -> Iterator[None]:
    """Commit candles and state in one transaction, and the messages in the next."""
    whole = Store.commit

    def commit(self: Store, lines: list[LineCommit], **bounds: Any) -> list[OutboxRow]:
        whole(self, [msgspec.structs.replace(line, messages=[]) for line in lines], **bounds)
        return whole(self, [msgspec.structs.replace(line, rows=[], snapshot=None) for line in lines], **bounds)

    with mock.patch.object(Store, "commit", commit):
        yield


@contextmanager
def a_retry_that_skips() -> Iterator[None]:
    """Send after a reconnection only what was never sent."""
    whole, newest = Store.pending, [0]

    def pending(self: Store, after_row: int, limit: int) -> list[OutboxRow]:
        rows = whole(self, max(after_row, newest[0]), limit)
        newest[0] = max([newest[0], *(row.row for row in rows)])
        return rows

    with mock.patch.object(Store, "pending", pending):
        yield


@contextmanager
def a_gap_not_repaired() -> Iterator[None]:
    """Take what follows a lost connection for what follows the newest trade."""

    def trusting(self: Stitch, trade: object) -> list[object]:
        self._sequence.trust(trade)  # type: ignore[arg-type]
        return [trade]

    with (
        mock.patch.object(Closer, "doubt"),
        mock.patch.object(Closer, "lose"),
        mock.patch.object(MarketPipeline, "lost"),
        mock.patch.object(Stitch, "trade", trusting),
    ):
        yield


@pytest.mark.parametrize(
    ("plant", "kinds"),
    [
        (state_before_outbox, ("kill_before_commit", "kill_after_commit", "kill_torn_commit")),
        (a_retry_that_skips, ("ack_loss", "ack_stall", "broker_reset")),
        (a_gap_not_repaired, ("reset", "gap")),
    ],
)
def test_a_planted_bug_is_noticed(plant: Callable[[], AbstractContextManager[None]], kinds: tuple[str, ...]) -> None:
    """The same schedules pass without the bug."""
    reference(0)
    faults = [Fault(kind, 60.0 + 45.0 * n, KINDS[kind][2]) for n, kind in enumerate(kinds * 4)]
    noticed = ""
    for seed in range(4):
        play_and_compare(seed, faults)
        try:
            with plant():
                play_and_compare(seed, faults)
        except Diverged as error:
            noticed = str(error)
            break
    assert noticed
    assert "died" not in noticed, "it is the bug that is to be noticed, not that it was planted badly"


def play_and_compare(seed: int, faults: list[Fault]) -> None:
    run.compare(play(seed, faults, 0).streams, reference(0))
