"""Packets written past the client, and acknowledgements taken before it reads."""

import asyncio
import contextlib
import socket

from hypothesis import given
from hypothesis import strategies as st

from daemon.mqtt_wire import Wire, packet_end, publish_packet, publish_properties

PINGRESP = b"\xd0\x00"


def puback(number: int, reason: bytes = b"") -> bytes:
    return bytes((0x40, 2 + len(reason))) + number.to_bytes(2) + reason


def test_a_publish_is_what_the_protocol_says() -> None:
    assert publish_packet("a/b", b"hi", number=10, retain=False, properties=b"") == b"\x32\x09\x00\x03a/b\x00\x0ahi"
    assert publish_packet("a", b"hi", number=0, retain=True, properties=b"\x00") == b"\x31\x06\x00\x01a\x00hi"
    long = publish_packet("a", bytes(200), number=0, retain=False, properties=b"")
    assert long[:3] == b"\x30\xcb\x01"
    assert publish_properties(None) == b"\x13\x03\x00\x10application/json"
    assert publish_properties(60) == b"\x18\x03\x00\x10application/json\x02\x00\x00\x00\x3c"


@given(st.sampled_from([0, 1, 127, 128, 16383, 16384, 40000]), st.integers(0, 3))
def test_the_end_of_a_packet_is_found_once_it_is_there(size: int, more: int) -> None:
    packet = publish_packet("t", bytes(size), number=1, retain=False, properties=b"")
    assert packet_end(b"xx" + packet + bytes(more), 2) == 2 + len(packet)
    assert all(packet_end(packet[:cut], 0) is None for cut in (0, 1, 2, len(packet) - 1))
    assert packet_end(b"\x30\xff\xff\xff\xff\x01", 0) == 6, "no such length: all of it is the client's to refuse"


@given(st.lists(st.sampled_from([1, 2, 65535, "ping", "reason"]), max_size=8), st.integers(1, 7))
def test_acknowledgements_are_ours_and_all_else_is_the_clients(script: list[int | str], piece: int) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            numbers, read = list[tuple[int, int]](), b""
            wire = Wire(ours, lambda *acknowledged: numbers.append(acknowledged))
            parts = [
                PINGRESP if p == "ping" else puback(7, b"\x10") if p == "reason" else puback(int(p)) for p in script
            ]
            data = b"".join(parts)
            for at in range(0, len(data), piece):
                theirs.send(data[at : at + piece])
                while True:
                    try:
                        read += wire.recv(1)
                    except BlockingIOError:
                        break
            theirs.close()
            assert wire.recv(1) == b"", "the end is the client's to see"
            assert read == PINGRESP * script.count("ping")
            assert numbers == [(7, 0x10) if p == "reason" else (p, 0) for p in script if p != "ping"]

    asyncio.run(run())


async def test_what_a_slow_reader_does_not_take_waits_in_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        wire = Wire(ours, lambda *_: None)
        packets = [number.to_bytes(4) * 4096 for number in range(200)]
        for packet in packets:
            wire.publish(packet)
        wire.send(b"last")
        await asyncio.sleep(0)
        assert wire.waiting_bytes > 0
        seen, loop = b"", asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while not seen.endswith(b"last"):
                seen += await loop.sock_recv(theirs, 1 << 16)
        assert seen == b"".join(packets) + b"last"
        assert wire.waiting_bytes == 0
        wire.close()


async def test_a_broken_socket_is_left_to_whoever_reads() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.close()
    wire = Wire(ours, lambda *_: None)
    wire.publish(b"x")
    await asyncio.sleep(0.01)
    assert wire.waiting_bytes == 0
    with contextlib.suppress(ConnectionError):
        assert wire.recv(1) == b""
    wire.close()
    wire.publish(b"y")
    await asyncio.sleep(0.01)
