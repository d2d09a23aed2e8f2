"""The emulated exchange's clock."""

import time
from collections.abc import Callable


class VirtualClock:
    """Exchange time: stands at `start_ns` until `begin`, then runs `speed` times as fast as `monotonic_ns`."""

    def __init__(
        self, start_ns: int, *, speed: float = 1.0, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        if speed <= 0:
            raise ValueError(f"speed {speed} is not above zero")
        self.start_ns, self.speed = start_ns, speed
        self._monotonic_ns = monotonic_ns
        self._began_ns: int | None = None

    @property
    def running(self) -> bool:
        """Whether it has begun."""
        return self._began_ns is not None

    def begin(self) -> None:
        """Let time run; no effect once it does."""
        if self._began_ns is None:
            self._began_ns = self._monotonic_ns()

    def now_ns(self) -> int:
        """Return the exchange's time, ns UTC."""
        if self._began_ns is None:
            return self.start_ns
        return self.start_ns + round((self._monotonic_ns() - self._began_ns) * self.speed)

    def now_ms(self) -> int:
        """Return the exchange's time in the unit of its messages, ms UTC."""
        return self.now_ns() // 1_000_000
