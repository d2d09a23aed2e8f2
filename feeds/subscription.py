"""Which streams a connection carries: what was asked, acknowledged, listed. Pure; monotonic seconds are arguments."""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence

RequestId = int | str


class Subscription:
    """The requests of one connection, from the first to the proof that every stream is there.

    An acknowledgement proves nothing (exchanges acknowledge names that they do not serve), so once all requests are
    acknowledged the exchange is asked to list what the connection carries, where it can.
    """

    def __init__(
        self,
        requests: Sequence[tuple[RequestId, str]],
        *,
        confirm: tuple[RequestId, str] | None,
        streams: Collection[str],
        spacing_s: float,
        ack_timeout_s: float,
    ) -> None:
        self._unsent = deque(requests)
        self._confirm = confirm
        self._confirm_queued = False
        self._streams = frozenset(streams)
        self._spacing_s, self._ack_timeout_s = spacing_s, ack_timeout_s
        self._sent_at: dict[RequestId, float] = {}
        self._last_sent_s = -math.inf
        self.complete = False
        """Every request is acknowledged and the list, where there is one, equals what was asked."""
        self.absent: tuple[str, ...] = ()
        """Asked for and not listed."""
        self.unasked: tuple[str, ...] = ()
        """Listed and not asked for."""

    @property
    def send_at_s(self) -> float:
        """When the next request may be sent; infinity if there is none."""
        return self._last_sent_s + self._spacing_s if self._unsent else math.inf

    @property
    def overdue_at_s(self) -> float:
        """When the oldest unanswered request counts as lost; infinity if all are answered."""
        return min(self._sent_at.values(), default=math.inf) + self._ack_timeout_s

    @property
    def unanswered(self) -> tuple[RequestId, ...]:
        """Ids of requests that were sent and not yet answered."""
        return tuple(self._sent_at)

    def due(self, now_s: float) -> str | None:
        """Hand over the next request if its time has come; it counts as sent."""
        if now_s < self.send_at_s:
            return None
        request_id, frame = self._unsent.popleft()
        self._sent_at[request_id] = self._last_sent_s = now_s
        return frame

    def acked(self, request_id: RequestId) -> None:
        """Note an acknowledgement; one that answers nothing is ignored."""
        if self._confirm_queued or self._sent_at.pop(request_id, None) is None or self._unsent or self._sent_at:
            return
        if self._confirm is None:
            self.complete = True
        else:
            self._confirm_queued = True
            self._unsent.append(self._confirm)

    def listed(self, request_id: RequestId, streams: Collection[str]) -> None:
        """Note what the exchange says the connection carries; see `complete`, `absent`, `unasked`."""
        if self._confirm is None or request_id != self._confirm[0] or self._sent_at.pop(request_id, None) is None:
            return
        self.absent = tuple(sorted(self._streams.difference(streams)))
        self.unasked = tuple(sorted(set(streams) - self._streams))
        self.complete = not (self.absent or self.unasked)


def plan(loads: Mapping[str, int], *, capacity: int, headroom: float = 0.8) -> list[tuple[str, ...]]:
    """Spread markets over connections, in order, a market's streams always together.

    Args:
        loads: what each market's streams use of a connection, in the exchange's unit.
        capacity: the exchange's limit per connection, in the same unit.
        headroom: part of that limit to use.

    Raises:
        ValueError: one market alone needs more than a connection may carry.

    """
    room = int(capacity * headroom)
    groups: list[list[str]] = []
    used = room
    for market, load in loads.items():
        if load > room:
            raise ValueError(f"{market} needs {load} of a connection's {room}")
        if used + load > room:
            groups.append([])
            used = 0
        groups[-1].append(market)
        used += load
    return [tuple(group) for group in groups]
