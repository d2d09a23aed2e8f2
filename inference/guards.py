"""Guards that may overrule the model's side: a pause after a losing trade, and a stop for the day after its loss. Pure.

Both are off unless the operator asks for them. What they know is a fold over one UTC day, so it does not depend on when
the daemon was started: it begins flat, with nothing lost, at the day's first candle (the one that closes at 00:00; an
event candle counts in the day that it is numbered in) and takes the model's own side of every candle since.

The ledger is that of a position of constant value which follows the published sides from close to close: each candle's
return in bps of that value, less fee and half spread for each fill. A side held at the day's first candle counts as
taken there. Funding is left out: what it costs was weighed when the model chose its side.
"""

import hashlib
import struct
from typing import Final

import msgspec

from feeds.market import NS_PER_DAY, CandleSpec
from inference.signals import Decision, Rules, Side

COOLDOWN: Final = "cooldown"
DAILY_LOSS_LIMIT: Final = "daily_loss_limit"
_HASH_BYTES = 16
_SIGN = {Side.SHORT: -1, Side.FLAT: 0, Side.LONG: 1}


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """A UTC day's ledger after one of its candles."""

    chain: bytes
    """Hash over ordinal, close and model's side of each of the day's candles; all the rest follows from them."""
    close: float = 0.0
    side: Side = Side.FLAT
    """The published side, held from this close on."""
    reason: str = ""
    """Which guard keeps it flat, whatever the model says; empty: none does."""
    day_bps: float = 0.0
    """What the day has brought so far, the open position at its present price."""
    trade_bps: float = 0.0
    """What the open position has brought, its entry paid."""
    resume_seq: int = 0
    """The first ordinal at which a side may be taken again after a losing trade."""
    stopped: bool = False
    """Whether the day's loss limit has been reached."""

    def hash_with(self, chain: bytes) -> str:
        """Join the day's chain with that of the epoch's fold: all that decides a guarded signal, 32 hex digits."""
        return _digest(chain + self.chain).hex()


def candles_a_day(spec: CandleSpec) -> int:
    """Return how many time candles a day has."""
    return NS_PER_DAY // spec.interval_ns


def day_begin(seq: int, spec: CandleSpec) -> int:
    """Return the first ordinal of the UTC day in which time candle `seq` closes; what closes at 00:00 is the first."""
    return seq - seq % candles_a_day(spec)


def begin(seq: int) -> Guard:
    """Open the ledger before candle `seq`, the day's first that the model has a word on."""
    return Guard(chain=_digest(struct.pack("<q", seq)))


def follow(guard: Guard, *, seq: int, close: float, wanted: Side, rules: Rules) -> Guard:
    """Value the day at candle `seq`, on which the model says `wanted`, and settle the side held from its close on."""
    held = guard.side is not Side.FLAT
    gain_bps, exit_bps = return_bps(guard.side, guard.close, close), rules.fill_bps if held else 0.0
    day_bps, trade_bps = guard.day_bps + gain_bps, guard.trade_bps + gain_bps
    stopped = guard.stopped or loss_reached(day_bps - exit_bps, rules.daily_loss_limit_bps)
    resume_seq = guard.resume_seq
    if held and (stopped or wanted is not guard.side):
        resume_seq = max(resume_seq, resume_after(seq, trade_bps - exit_bps, rules.cooldown_candles))
    reason = DAILY_LOSS_LIMIT if stopped else COOLDOWN if seq < resume_seq else ""
    side = Side.FLAT if reason else wanted
    if side is not guard.side:
        entry_bps = rules.fill_bps if side is not Side.FLAT else 0.0
        day_bps, trade_bps = day_bps - exit_bps - entry_bps, -entry_bps
    return Guard(
        chain=_digest(guard.chain + struct.pack("<qdb", seq, close, _SIGN[wanted])),
        close=close,
        side=side,
        reason=reason,
        day_bps=day_bps,
        trade_bps=trade_bps,
        resume_seq=resume_seq,
        stopped=stopped,
    )


def pass_over(guard: Guard, seq: int) -> Guard:
    """Take the fact that there is no candle `seq`: what is held stays, and time passes for a cooldown."""
    return msgspec.structs.replace(guard, chain=_digest(guard.chain + b"void" + struct.pack("<q", seq)))


def guarded(decision: Decision, guard: Guard) -> Decision:
    """Return the decision as the guard leaves it: flat for its reason, or as it is; expectations are never touched."""
    if guard.side is decision.side:
        return decision
    return msgspec.structs.replace(decision, side=Side.FLAT, confidence=decision.p_flat, reasons=[guard.reason])


def return_bps(side: Side, before: float, now: float) -> float:
    """Return what a position of constant value brought between two closes, bps of that value."""
    return _SIGN[side] * (now / before - 1.0) * 1e4 if side is not Side.FLAT else 0.0


def loss_reached(day_bps: float, limit_bps: float | None) -> bool:
    """Tell whether a day that would now close with `day_bps`, every exit paid, has lost what it may."""
    return limit_bps is not None and day_bps <= -limit_bps


def resume_after(seq: int, trade_bps: float, cooldown_candles: int | None) -> int:
    """Return the first ordinal that may take a side again after a trade was closed at `seq` with `trade_bps`."""
    return seq + cooldown_candles if cooldown_candles is not None and trade_bps < 0.0 else seq


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()
