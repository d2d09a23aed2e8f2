"""An exchange on loopback, in the dialect of one of five, over recorded or invented tapes, on a clock of its own."""

from feeds.emulator.server import Emulator, serve
from feeds.emulator.sources import tape_from
from feeds.emulator.tape import Tape

__all__ = ["Emulator", "Tape", "serve", "tape_from"]
