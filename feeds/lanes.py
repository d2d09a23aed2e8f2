"""The connections of one group of markets as a recording tells of them: the same events come out as live. Pure."""

from collections.abc import Callable

from feeds.events import Ack, Entry, Event, Refusal, Reply, Subscriptions
from feeds.exchanges.base import Codec
from feeds.merge import Merge


class Lanes:
    """What `FeedRunner` does with its connections' frames, for frames that came once."""

    def __init__(self, codec_factory: Callable[[], Codec]) -> None:
        self._codec_factory = codec_factory
        self._merge = Merge(codec_factory().traits)
        self._codecs: dict[int, Codec] = {}
        self._confirmed: set[int] = set()
        self.interruptions = 0
        """How often trades may be missing, as a connection ended before another had all that it had."""

    @property
    def live(self) -> bool:
        """Whether a connection carries everything that was asked for."""
        return bool(self._confirmed)

    def take(self, entry: Entry, lane: int, time_ns: int, payload: bytes) -> list[Event]:
        """Take one entry; return what is handed on. What the recording does not say was opened is left out."""
        if entry is Entry.OPENED:
            self._codecs[lane] = self._codec_factory()  # a connection's codec remembers what that connection said
            self._merge.join(lane)
        elif lane not in self._codecs:
            return []
        elif entry is Entry.FRAME:
            events = self._codecs[lane].decode(payload, time_ns)
            told: list[Event] = [
                event for event in events if not isinstance(event, Ack | Refusal | Subscriptions | Reply)
            ]
            return self._merge.take(lane, told)
        elif entry is Entry.CONFIRMED:
            self._confirmed.add(lane)
            return self._merge.confirm(lane)
        elif entry is Entry.ENDED:
            del self._codecs[lane]
            self._confirmed.discard(lane)
            self.interruptions += not self._merge.bridged(lane)
            return self._merge.leave(lane)
        return []
