"""How long to wait before connecting again."""

import random


class Backoff:
    """Capped exponential delays with full jitter, after which herds of clients do not return in step.

    The delay before attempt n is drawn evenly from [0, min(cap, initial × 2^n)). Only a connection that stayed live for
    `reset_after_s` sets n back, so a server that accepts and drops at once is not hammered. Formula: "full jitter" of
    AWS's article on exponential backoff and jitter.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        initial_s: float = 0.2,
        cap_s: float = 30.0,
        reset_after_s: float = 10.0,
        spacing_s: float = 0.2,
    ) -> None:
        self._rng = rng
        self._initial_s, self._cap_s = initial_s, cap_s
        self._reset_after_s, self._spacing_s = reset_after_s, spacing_s
        self._limit_s = initial_s

    def delay_s(self, *, live_s: float, since_attempt_s: float) -> float:
        """Return the wait until the next attempt.

        Args:
            live_s: how long the connection that ended had been live; 0 if it never was.
            since_attempt_s: time since that attempt began; two never begin within `spacing_s`.

        """
        if live_s >= self._reset_after_s:
            self._limit_s = self._initial_s
        delay_s = self._rng.uniform(0.0, self._limit_s)
        self._limit_s = min(self._cap_s, 2 * self._limit_s)
        return max(delay_s, self._spacing_s - since_attempt_s)
