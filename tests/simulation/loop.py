"""Time that passes only when nobody has anything left to do: the world's timeline, and an event loop on it."""

import asyncio
import heapq
import math
import signal
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


class Stuck(Exception):
    """Neither the process nor the world has anything to wait for."""


class Timeline:
    """What will happen outside the process, in order of time, then of arrangement."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.frozen_until_s = 0.0
        """Until then the process does not run, and the world goes on."""
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, when_s: float, do: Callable[[], None]) -> None:
        """Arrange for `do` to be called at a time, now at the earliest."""
        heapq.heappush(self._due, (max(when_s, self.now_s), next(self._numbers), do))

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        self.at(self.now_s + delay_s, do)

    @property
    def next_s(self) -> float:
        return self._due[0][0] if self._due else math.inf

    def step(self) -> None:
        """Let the next thing happen."""
        when_s, _, do = heapq.heappop(self._due)
        self.now_s = when_s
        do()

    def pass_until(self, when_s: float) -> None:
        """Let all happen that is due by then."""
        while self.next_s <= when_s:
            self.step()
        self.now_s = when_s


class _Task(asyncio.Task[Any]):
    """Hashes by its number: a set of tasks has the same order in every run."""

    _numbers: ClassVar["count[int]"] = count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._hash = next(_Task._numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def restart(cls) -> None:
        cls._numbers = count()


class _Selector:
    """Has no sockets: to wait is to let the world go on until it, or a timer, wakes the process."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        loop = self._loop
        timeline = loop.timeline
        if timeout_s == 0:
            timeline.pass_until(timeline.now_s)
        while timeout_s != 0 and loop.alive and not loop.ready:
            if timeline.now_s < timeline.frozen_until_s:
                timeline.pass_until(timeline.frozen_until_s)
                continue
            timer_s = loop.next_timer_s
            if timeline.next_s <= timer_s:
                if timeline.next_s == math.inf:
                    raise Stuck
                timeline.step()
                continue
            timeline.now_s = max(timer_s, timeline.now_s)
            break
        if timeline.now_s < timeline.frozen_until_s:
            timeline.pass_until(timeline.frozen_until_s)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """The event loop of one process. It has no sockets and no threads; what would run in a thread runs at once."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self.timeline = timeline
        self.alive = True
        self.signals: dict[int, Callable[[], Any]] = {}
        self.complaints: list[str] = []
        """What asyncio would have logged as errors: exceptions that nobody looked at."""
        self._selector = _Selector(self)
        self._clock_resolution = 1e-9
        self.set_task_factory(lambda loop, coro, **more: _Task(coro, loop=loop, **more))
        self.set_exception_handler(lambda _, context: self.complaints.append(str(context)))

    def time(self) -> float:
        return self.timeline.now_s

    @property
    def ready(self) -> bool:
        return bool(self._ready)  # type: ignore[attr-defined]

    @property
    def next_timer_s(self) -> float:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            heapq.heappop(scheduled)._scheduled = False
        return scheduled[0].when() if scheduled else math.inf

    def _run_once(self) -> None:
        if not self.alive:
            raise Killed
        super()._run_once()  # type: ignore[misc]

    def _process_events(self, _events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def add_signal_handler(self, sig: int, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        self.signals[sig] = lambda: callback(*args)

    def send_signal(self, number: signal.Signals) -> None:
        if number in self.signals:
            self.call_soon(self.signals[number])
        else:
            self.kill()

    def run_in_executor(self, _executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def kill(self) -> None:
        """Stop for ever, wherever the process is."""
        self.alive = False

    def bury(self) -> None:
        """Let go of a stopped process: its clean-up code runs, in a world where it reaches nobody."""
        self.timeline, self.alive = _copy(self.timeline), True
        self.set_exception_handler(lambda *_: None)
        for _ in range(5):
            left = asyncio.all_tasks(self)
            if not left:
                break
            for task in left:
                task.cancel()
            self.run_until_complete(asyncio.wait(left, timeout=60.0))
        self.close()


def _copy(timeline: Timeline) -> Timeline:
    limbo = Timeline()
    limbo.now_s = timeline.now_s
    return limbo


def fresh_numbers() -> None:
    """Begin to number tasks anew, so that a run does not depend on those before it."""
    _Task.restart()
