"""The emulated exchange's state, shared by its REST, its websocket and whoever disturbs it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from feeds.emulator.clock import VirtualClock
from feeds.emulator.faults import Faults
from feeds.emulator.tape import Tape


@dataclass
class Venue:
    """What REST and websocket share."""

    clock: VirtualClock
    tapes: Mapping[str, Tape]
    """The markets listed, by the exchange's own names: ``BTCUSDT``, ``BTC-USDT``, ``XBTUSD``."""
    faults: Faults = field(default_factory=Faults)
    keepalive_speed: float = 1.0
    """How many seconds of the exchange's keep-alive rules pass in a real second."""
    frames: int = 0
    """Frames of market data sent."""
    lost: int = 0
    """Frames that fell due while mute or half open."""
    requests: Counter[str] = field(default_factory=Counter)
    """REST requests by endpoint; ``websocket`` counts connections."""

    headers: dict[str, str] = field(default_factory=dict)
    """Of every REST answer."""

    def __post_init__(self) -> None:
        self.tapes = dict(self.tapes)

    def list_market(self, native: str, tape: Tape) -> None:
        """List a market; let its tape begin no earlier than now, or it comes with a past."""
        self.tapes = {**self.tapes, native: tape}

    def delist(self, native: str) -> None:
        """Forget a market: its streams fall silent, requests about it are refused."""
        self.tapes = {name: tape for name, tape in self.tapes.items() if name != native}

    def halt(self, native: str) -> None:
        """Let nothing be traded in a market until `resume`; it stays listed, and its candles are empty."""
        self.tapes[native].halt(self.clock.now_ms())

    def resume(self, native: str) -> None:
        """Let a halted market be traded again; what its tape held meanwhile never happened."""
        self.tapes[native].resume(self.clock.now_ms())

    def retick(self, native: str, *, price_decimals: int) -> None:
        """Change a market's tick to ``10**-price_decimals`` from now on."""
        self.tapes[native].retick(self.clock.now_ms(), price_decimals)
