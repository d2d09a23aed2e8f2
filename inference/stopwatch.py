"""Where a candle's time goes, by a clock that is handed in: pure code has none, and without one all times are 0."""

from collections.abc import Callable


class Stopwatch:
    """The times of the candle under way. A daemon works on one at a time, so all its markets may share one."""

    __slots__ = ("begun_ns", "features_ns", "now_ns", "step_ns", "taken_ns")

    def __init__(self, now_ns: Callable[[], int] = lambda: 0) -> None:
        """Read `now_ns`, the same clock that the times of receipt come from."""
        self.now_ns = now_ns
        self.taken_ns = 0
        """When the event now handled was taken over, decoded."""
        self.begun_ns = 0
        """When the closed candle began to be folded."""
        self.features_ns = self.step_ns = 0
        """How long its features and the model's step took, in all folds that it is part of."""

    def take(self) -> None:
        """Note that decoded events are taken over."""
        self.taken_ns = self.now_ns()

    def begin(self) -> None:
        """Note that a closed candle begins to be folded."""
        self.begun_ns, self.features_ns, self.step_ns = self.now_ns(), 0, 0

    def stages_us(self, *, event_time_ns: int, receive_time_ns: int, drafted_ns: int) -> dict[str, int]:
        """Divide the time from the event that closed the candle to its message, drafted at `drafted_ns`."""
        stages_ns = {
            "exchange": receive_time_ns - event_time_ns,
            "decode": self.taken_ns - receive_time_ns,
            "candle": self.begun_ns - self.taken_ns,
            "features": self.features_ns,
            "step": self.step_ns,
            "decision": drafted_ns - self.begun_ns - self.features_ns - self.step_ns,
        }
        return {stage: ns // 1000 for stage, ns in stages_ns.items()}
