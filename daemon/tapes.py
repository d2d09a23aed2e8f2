"""Find the tapes that a user names, and play them."""

import glob
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from daemon.replay import Output, Replay, TapeError
from feeds.capture import recordings_in, tape_frames
from feeds.playback import is_recording, play, read_header


class Tapes(NamedTuple):
    """What was found: recordings of ours, or tapes of other kinds, never both."""

    recordings: list[Path]
    others: list[Path]
    exchange: str | None
    """Whose frames a recording holds; of other tapes nobody knows."""
    specs: list[str]
    """Candle specs whose klines a recording holds."""

    def outputs(self, player: Replay, native: str, say: Callable[[str], None]) -> Iterator[Output]:
        """Play everything in order; `native` names the market where a tape does not, `say` is told what is torn.

        Raises:
            TapeError: they cannot be read, or do not follow upon one another.

        """
        try:
            if self.recordings:
                yield from player.play(play(self.recordings, say))
            else:
                frames = itertools.chain.from_iterable(tape_frames(path, native) for path in self.others)
                yield from player.run(frames)
        except (OSError, ValueError) as error:
            raise TapeError(str(error)) from error


def find(paths: list[Path], exchange: str | None = None) -> Tapes:
    """Look at files, folders and globs; of recordings only those of `exchange`, if one is named.

    Raises:
        TapeError: one is not there or cannot be read, or they do not belong together.

    """
    try:
        files = [file for path in paths for file in _files(path)]
        headers = {file: read_header(file) for file in files if is_recording(file)}
    except (OSError, ValueError) as error:
        raise TapeError(str(error)) from error
    others = [file for file in files if file not in headers]
    if headers and others:
        raise TapeError(f"{others[0]} is no recording, {next(iter(headers))} is one: one kind at a time")
    kept = {file: header for file, header in headers.items() if exchange in (None, header.exchange)}
    exchanges = sorted({header.exchange for header in kept.values()})
    if headers and len(exchanges) != 1:
        held = ", ".join(sorted({header.exchange for header in headers.values()}))
        raise TapeError(f"recordings of {held}: --exchange names the one to play")
    specs = dict.fromkeys(spec for header in kept.values() for spec in header.specs)
    return Tapes(list(kept), others, exchanges[0] if exchanges else None, list(specs))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return recordings_in(path)
    if glob.has_magic(str(path)) and not path.exists():
        found = [Path(name) for name in sorted(glob.glob(str(path)))]
        if not found:
            raise ValueError(f"nothing is called {path}")
        return found
    return [path]
