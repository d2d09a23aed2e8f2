"""What can be made to go wrong with any emulated exchange, and what that does to the frames of one connection."""

import math
import random
from dataclasses import dataclass
from typing import Generic, TypeVar

F = TypeVar("F")
UNAVAILABLE = 503


@dataclass
class Faults:
    """Switches, all of them off; they take effect at once, on open connections too. Chance comes from `seed`."""

    seed: int = 0
    refuse: bool | int = False
    """New connections and requests get this HTTP status: 403, 451, …; True means 503."""
    mute: bool = False
    """Connections stay open and answer; what falls due on them is lost."""
    half_open: bool = False
    """Connections are accepted and stay open; nothing is sent on them, and nothing is answered or even closed."""
    duplicate: float = 0.0
    """Share of the market data's frames that are sent twice."""
    reorder: float = 0.0
    """Share of the market data's frames that change places with the next one."""
    stalled_until_s: float = -math.inf
    """No connection sends before this moment of the event loop; what it has to send is kept."""
    lifetime_s: float | None = None
    """Age in seconds at which connections are ended, instead of the exchange's own."""
    limited: int = 0
    """REST requests still to be refused for their rate."""
    retry_after_s: int = 1
    """What the refusals say of when to come back."""
    banned: bool = False
    """Whether they are those for clients that went on regardless."""

    @property
    def refusal(self) -> int:
        """Return the status to refuse with; 0 for none."""
        return UNAVAILABLE if self.refuse is True else int(self.refuse)

    def limit(self, requests: int, *, retry_after_s: int = 1, banned: bool = False) -> None:
        """Refuse the next REST requests for their rate; `banned`: as the exchange does with those who go on."""
        self.limited, self.retry_after_s, self.banned = requests, retry_after_s, banned


class Disorder(Generic[F]):
    """Repeat and swap the frames of one connection; same seed, same frames, same disorder."""

    def __init__(self, faults: Faults, number: int) -> None:
        self._faults = faults
        # One for each fault: neither then depends on how the frames come together.
        of = f"{faults.seed}/{number}"
        self._swap, self._repeat = random.Random(f"swap {of}"), random.Random(f"repeat {of}")  # noqa: S311 (no secrets)
        self._held: list[F] = []

    def apply(self, frames: list[F]) -> list[F]:
        """Return the frames to send now; one that is to change places waits for the next, however long that takes."""
        out: list[F] = []
        for frame in frames:
            if self._held:
                out += [frame, self._held.pop()]
            elif self._swap.random() < self._faults.reorder:
                self._held.append(frame)
            else:
                out.append(frame)
        return [frame for frame in out for _ in range(1 + (self._repeat.random() < self._faults.duplicate))]
