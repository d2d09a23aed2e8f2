"""PUBLISH and PUBACK past an MQTT client: what there is much of costs microseconds, all else is the client's affair.

A `Wire` takes the place of a connected client's socket. The client goes on to write and read through it; of what
arrives it never sees the acknowledgements, which are those of messages published here. Messages of one turn of the
event loop leave in one write. A message at QoS 1 costs about 5 µs so, through the client and a task of its own 90.

The protocol's sections are those of MQTT 5.0; 3.1.1 differs in having no properties.
"""

import asyncio
import functools
import socket
import ssl
import struct
from collections.abc import Callable

CHUNK_BYTES = 1 << 16
PUBACK = 4
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Wire:
    """A client's socket, shared with it."""

    def __init__(self, sock: socket.socket, acknowledged: Callable[[int, int], None]) -> None:
        """Take over a connected, non-blocking `sock`; `acknowledged` is told the number and reason of each PUBACK."""
        self._sock, self._acknowledged = sock, acknowledged
        self._loop = asyncio.get_running_loop()
        self._partial = b""
        """The begin of a packet whose end has not come yet."""
        self._theirs = b""
        """What is the client's to read."""
        self._out: list[bytes] = []
        self._flushes = self._waits = False
        self.waiting_bytes = 0
        """What the socket has not taken yet."""

    # ---- ours

    def publish(self, packet: bytes) -> None:
        """Send a packet with the others of this turn of the loop."""
        self._out.append(packet)
        self.waiting_bytes += len(packet)
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._sock.fileno() < 0:
            return
        data, sent = memoryview(b"".join(self._out)), 0
        try:
            while sent < len(data):
                sent += self._sock.send(data[sent : sent + CHUNK_BYTES])
        except _AGAIN:
            self._out = [bytes(data[sent:])]
            if not self._waits:
                self._loop.add_writer(self._sock, self._flush)
            self._flushes = self._waits = True
        except OSError:
            self._forget()  # whoever reads learns of it, and why
        else:
            self._forget()
        self.waiting_bytes = len(data) - sent if self._out else 0

    def _forget(self) -> None:
        self._out.clear()
        if self._waits:
            self._loop.remove_writer(self._sock)
        self._flushes = self._waits = False

    def _take(self, data: bytes) -> None:
        """Divide what has come: acknowledgements are ours, all else is the client's."""
        data, at = self._partial + data, 0
        while (end := packet_end(data, at)) is not None:
            if data[at] >> 4 == PUBACK and end - at >= 4:
                self._acknowledged(data[at + 2] << 8 | data[at + 3], data[at + 4] if end - at > 4 else 0)
            else:
                self._theirs += data[at:end]
            at = end
        self._partial = data[at:]

    # ---- the client's, as of a socket

    def recv(self, size: int) -> bytes:
        """Read; BlockingIOError (for TLS: what that says) where nothing is there, empty at the end."""
        if not self._theirs:
            data = self._sock.recv(CHUNK_BYTES)
            if not data:
                return b""
            self._take(data)
            if not self._theirs:
                raise BlockingIOError
        taken, self._theirs = self._theirs[:size], self._theirs[size:]
        return taken

    def pending(self) -> int:
        """Return how much can be read without waiting for the socket."""
        return len(self._theirs) or (self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0)

    def send(self, data: bytes | bytearray) -> int:
        """Write a packet behind those that wait; all of it is taken."""
        self._out.append(bytes(data))
        if not self._waits:
            self._flush()
        return len(data)

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._forget()
        self._sock.close()


def packet_end(data: bytes, at: int) -> int | None:
    """Return where the packet at `at` ends; None where its end has not come (§1.5.5, §2.1)."""
    length = shift = 0
    for i in range(at + 1, min(at + 5, len(data))):
        length |= (data[i] & 0x7F) << shift
        if data[i] < 0x80:
            end = i + 1 + length
            return end if end <= len(data) else None
        shift += 7
    return len(data) if len(data) - at >= 5 else None  # no such length: the client will say so


def publish_packet(topic: str, payload: bytes, *, number: int, retain: bool, properties: bytes) -> bytes:
    """Write a PUBLISH (§3.3), at QoS 1 under `number`, at QoS 0 where that is 0; `properties` is empty for 3.1.1."""
    head = _topic(topic) + (number.to_bytes(2) if number else b"") + properties
    return bytes((0x30 | (0x02 if number else 0) | retain,)) + _length(len(head) + len(payload)) + head + payload


@functools.lru_cache(maxsize=65536)
def _topic(topic: str) -> bytes:
    raw = topic.encode()
    return len(raw).to_bytes(2) + raw


def _length(value: int) -> bytes:
    """Write a variable byte integer (§1.5.5)."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@functools.lru_cache(maxsize=64)
def publish_properties(expiry_s: int | None) -> bytes:
    """Write a message's properties (§3.3.2.3): its content type, and after how many seconds it is worth nothing."""
    body = b"\x03" + _topic("application/json")
    if expiry_s is not None:
        body += b"\x02" + struct.pack("!I", max(1, expiry_s))
    return _length(len(body)) + body
