"""What exchange, network, broker and disk share in one run: time, chance, the faults in force, and the process."""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.loop import Timeline, VirtualLoop

START_NS = 1_730_015_520 * 10**9
"""2024-10-27 07:52 UTC by the exchange: eight minutes before a funding settlement and the end of an epoch of 1m."""


@dataclass
class World:
    """One run's."""

    seed: int
    timeline: Timeline = field(default_factory=Timeline)
    wall_offset_ns: int = 0
    """How far the host's wall clock is off."""
    active: dict[str, float] = field(default_factory=dict)
    """Faults in force, by kind: when each ends."""
    fired: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault had an effect; a fault that is a span of time counts once."""
    process: VirtualLoop | None = None
    trace: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    """What happened and what the daemon logged, for whoever looks into a failure."""
    planted: set[str] = field(default_factory=set)
    """Faults of the present process that excuse its end by an exception."""
    _told: set[tuple[str, float]] = field(default_factory=set)

    @property
    def now_s(self) -> float:
        return self.timeline.now_s

    @property
    def exchange_ns(self) -> int:
        return START_NS + round(self.now_s * 1e9)

    @property
    def wall_ns(self) -> int:
        return self.exchange_ns + self.wall_offset_ns

    @property
    def monotonic_s(self) -> float:
        return 1000.0 + self.now_s

    def chance(self, name: str) -> random.Random:
        """Return a source of chance of its own: what one part draws does not depend on the others."""
        return random.Random(f"{self.seed} {name}")

    def begin(self, kind: str, for_s: float) -> None:
        """Put a fault in force for so long."""
        self.active[kind] = max(self.now_s + for_s, self.active.get(kind, 0.0))
        self.note("fault", kind=kind, for_s=round(for_s, 3))

    def on(self, kind: str) -> bool:
        """Tell whether a fault is in force; asking counts it as having had an effect."""
        until_s = self.active.get(kind)
        if until_s is None or self.now_s >= until_s:
            return False
        if (kind, until_s) not in self._told:
            self._told.add((kind, until_s))
            self.fired[kind] += 1
        return True

    def in_force(self, kind: str) -> bool:
        """Tell whether a fault is in force, without an effect yet."""
        return self.now_s < self.active.get(kind, 0.0)

    def note(self, what: str, /, **more: Any) -> None:
        self.trace.append((round(self.now_s, 4), what, more))
