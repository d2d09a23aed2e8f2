"""MQTT connections: the only user of aiomqtt (what asyncio-mqtt is called today).

A link knows how to reach one broker. `connect` gives a connection for publishing and `follow` one for reading; they are
never the same, as each would wait for the other's acknowledgements. MQTT 5 is tried first, and 3.1.1 from then on
where the broker does not know it. Sessions are clean and nothing is sent again behind the caller's back: what was not
acknowledged when a connection was lost fails, and the caller's outbox sends it once more, in order.

aiomqtt connects, keeps alive, reads and takes leave. Messages are published past it, see `daemon.mqtt_wire`.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode

from daemon.mqtt_wire import Wire, publish_packet, publish_properties

WRONG_PROTOCOL = 0x84
REFUSALS = frozenset({0x85, 0x86, 0x87, 0x8A, 0x8C})
"""MQTT 5 reason codes (§3.2.2.2) that the same CONNECT will meet again: client id, user name or password, not
authorized, banned, authentication method. paho gives the 3.1.1 return codes the same numbers."""
REFUSED = 0x80
"""The first reason code of a PUBACK that says no (MQTT 5, §3.4.2.1); MQTT 3.1.1 has no way to say so."""
RECEIVE_QUEUE_MAX = 10_000
"""Messages read and not yet taken by the caller of `follow`; aiomqtt drops and logs those past it."""
CONGESTED_BYTES = 4 << 20
"""So much that the socket has not taken, and nothing at QoS 0 is worth adding."""
_NUMBERS = 65535
"""Packet identifiers go from 1 to this."""


class BrokerError(Exception):
    """The broker or the network failed; trying again later is right."""


class MessageRefused(BrokerError):
    """The broker does not take a message: we may not write to its topic, or there is too much."""


class BrokerRefused(Exception):
    """The broker does not take us as we are configured: the operator's to mend, no use in trying again."""


class Credentials(NamedTuple):
    """How to prove who we are; paths are PEM files."""

    username: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


class Will(NamedTuple):
    """What the broker publishes, retained and at QoS 1, when we vanish."""

    topic: str
    payload: bytes


class Received(NamedTuple):
    """A message that came from the broker."""

    topic: str
    payload: bytes
    retained: bool


class _HungUp(aiomqtt.MqttError):
    """The broker, or what stands before it, ended the connection before it had answered."""


class Client(aiomqtt.Client):
    """aiomqtt's client, which also heeds how much the broker takes at once, and notices one that hangs up unasked.

    aiomqtt would wait for such a broker's answer until its timeout.
    """

    receive_max = _NUMBERS
    """QoS 1 messages that it may be sent before it has acknowledged one (MQTT 5, §3.2.2.3.3)."""

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        self.receive_max = getattr(properties, "ReceiveMaximum", _NUMBERS)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_socket_close(self, *what: Any) -> None:
        super()._on_socket_close(*what)
        self._loop.call_soon_threadsafe(self._hung_up)  # paho connects in a thread

    def _hung_up(self) -> None:
        if not self._connected.done():
            self._connected.set_exception(_HungUp("it hung up before it answered"))
            _seen(self._connected)


class MqttLink:
    """The way to one broker."""

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        will: Will | None = None,
        credentials: Credentials = Credentials(),  # noqa: B008 (an immutable tuple)
        keepalive_s: int = 30,
        timeout_s: float = 10.0,
        inflight_max: int = 100,
    ) -> None:
        """Take `url` as ``mqtt://host[:1883]`` or ``mqtts://host[:8883]``; connect nothing yet.

        Raises:
            BrokerRefused: a certificate or key cannot be used.

        """
        parts = urlsplit(url)
        self._tls = _tls_context(credentials) if parts.scheme == "mqtts" else None
        self._host, self._port = parts.hostname or "", parts.port or (8883 if self._tls else 1883)
        self.where = f"{self._host}:{self._port}"
        self.protocol = aiomqtt.ProtocolVersion.V5
        self._client_id, self._will, self._credentials = client_id, will, credentials
        self._keepalive_s, self._timeout_s, self._inflight_max = keepalive_s, timeout_s, inflight_max

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncGenerator["Connection"]:
        """Open a connection for publishing.

        Raises:
            BrokerError: unreachable, or lost while leaving.
            BrokerRefused: the broker says no to our name, password or rights.

        """
        async with self._client() as client:
            v5 = self.protocol is aiomqtt.ProtocolVersion.V5
            window = min(self._inflight_max, client.receive_max)
            connection = Connection(client, _outlet, v5=v5, timeout_s=self._timeout_s, inflight_max=window)
            watch = asyncio.create_task(connection.watch(), name="mqtt-watch")
            try:
                yield connection
            finally:
                watch.cancel()
                connection.fail("connection closed")

    @contextlib.asynccontextmanager
    async def follow(self, *filters: str, qos: int = 1) -> AsyncGenerator[AsyncIterator[Received]]:
        """Open a connection that reads the topics that match `filters`; subscribed once this returns.

        The iterator raises BrokerError when the connection is lost.

        Raises:
            BrokerError: unreachable, or a subscription failed.
            BrokerRefused: the broker says no to our name, password or rights.

        """
        async with self._client(suffix="-in", with_will=False) as client:
            with _translated():
                granted = await client.subscribe([(f, qos) for f in filters])
            refused = [f for f, code in zip(filters, granted, strict=True) if _code(code) >= 0x80]
            if refused:
                raise BrokerRefused(f"{self.where} does not let us read {', '.join(refused)}")
            yield _received(client)

    @contextlib.asynccontextmanager
    async def _client(self, *, suffix: str = "", with_will: bool = True) -> AsyncGenerator[Client]:
        client = await self._entered(suffix, with_will)
        try:
            yield client
        finally:
            # Leaving may fail where the connection is gone already; that it is gone has been told elsewhere.
            with contextlib.suppress(aiomqtt.MqttError):
                await client.__aexit__(None, None, None)
            # Nobody may have been reading when it was lost, and asyncio complains of errors that nobody looked at.
            _seen(client._disconnected)

    async def _entered(self, suffix: str, with_will: bool) -> Client:
        """Connect, by the newest protocol that the broker knows."""
        try:
            return await self._make(suffix, with_will).__aenter__()
        except aiomqtt.MqttCodeError as error:
            code = _code(error.rc)
            if code == WRONG_PROTOCOL and self.protocol is aiomqtt.ProtocolVersion.V5:
                self.protocol = aiomqtt.ProtocolVersion.V311
                return await self._entered(suffix, with_will)
            if code in REFUSALS:
                raise BrokerRefused(f"{self.where} refuses us: {error.rc}") from None
            raise BrokerError(f"{self.where}: {error}") from error
        except aiomqtt.MqttError as error:
            raise BrokerError(f"{self.where}: {self._explained(error)}") from error

    def _explained(self, error: aiomqtt.MqttError) -> str:
        """Say what of the configuration an error of TLS speaks of."""
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return f"{error}; whose certificates are trusted is mqtt.ca_file's to say"
        if isinstance(error, _HungUp) and self._tls:
            return f"{error}; does it ask for a certificate other than mqtt.client_cert?"
        return str(error)

    def _make(self, suffix: str, with_will: bool) -> Client:
        v5 = self.protocol is aiomqtt.ProtocolVersion.V5
        will = self._will if with_will else None
        return Client(
            self._host,
            self._port,
            username=self._credentials.username,
            password=self._credentials.password,
            identifier=self._client_id + suffix,
            protocol=self.protocol,
            will=aiomqtt.Will(will.topic, will.payload, qos=1, retain=True) if will else None,
            clean_session=None if v5 else True,
            clean_start=True if v5 else 3,  # 3 is paho's word for "not MQTT 5"
            timeout=self._timeout_s,
            keepalive=self._keepalive_s,
            max_queued_incoming_messages=RECEIVE_QUEUE_MAX,
            max_inflight_messages=self._inflight_max,
            tls_context=self._tls,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )


class Outlet(Protocol):
    """Where packets go."""

    waiting_bytes: int

    def publish(self, packet: bytes) -> None:
        """Send a packet, after those before it."""


def _outlet(client: Client, acknowledged: Callable[[int, int], None]) -> Outlet:
    """Put a wire between a connected client and its socket."""
    paho = client._client
    wire = Wire(cast("socket.socket", paho.socket()), acknowledged)
    # The wire takes whatever it is given at once, so the client need not wait for the socket.
    paho.on_socket_register_write = paho.on_socket_unregister_write = None
    paho._sock = wire  # type: ignore[assignment]
    return wire


class _Pending(NamedTuple):
    """A message that waits for its acknowledgement."""

    future: "asyncio.Future[None]"
    due_s: float


class Connection:
    """One open connection for publishing."""

    def __init__(
        self,
        client: Client,
        outlet: Callable[[Client, Callable[[int, int], None]], Outlet],
        *,
        v5: bool,
        timeout_s: float,
        inflight_max: int,
    ) -> None:
        self._client, self._v5, self._timeout_s, self._inflight_max = client, v5, timeout_s, inflight_max
        self._outlet = outlet(client, self._acknowledged)
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _Pending] = {}
        self._queue: deque[bytes] = deque()
        """Packets of the newest of them, which wait until fewer are in flight."""
        self._number = 0
        self._patience: asyncio.TimerHandle | None = None
        self._lost: str | None = None
        self.lost = asyncio.Event()
        """Set once the connection is gone; what was pending has failed by then."""

    @property
    def congested(self) -> bool:
        """Whether the broker takes less than it is given."""
        return self._outlet.waiting_bytes > CONGESTED_BYTES

    def submit(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> asyncio.Future[None]:
        """Send without waiting, in the order of the calls; the future resolves at the broker's acknowledgement.

        It fails with MessageRefused when the broker says no, and with BrokerError when the connection is lost; one
        acknowledgement that takes longer than the link's timeout counts as that. At QoS 0 it resolves at once. Only
        MQTT 5 keeps `expiry_s`.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        if self._lost is None and qos and len(self._pending) == _NUMBERS:
            self.fail(f"{_NUMBERS} messages are not acknowledged")
        if self._lost is not None:
            future.set_exception(BrokerError(self._lost))
            _seen(future)
            return future
        number = 0
        if qos:
            number = self._free_number()
            future.add_done_callback(_seen)
            self._pending[number] = _Pending(future, self._loop.time() + self._timeout_s)
            if self._patience is None:
                self._patience = self._loop.call_later(self._timeout_s, self._lose_patience)
        else:
            future.set_result(None)
        properties = publish_properties(expiry_s) if self._v5 else b""
        packet = publish_packet(topic, payload, number=number, retain=retain, properties=properties)
        if number and len(self._pending) > self._inflight_max:
            self._queue.append(packet)
        else:
            self._outlet.publish(packet)
        return future

    def _free_number(self) -> int:
        while True:
            self._number = self._number % _NUMBERS + 1
            if self._number not in self._pending:
                return self._number

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        """Send and wait for the acknowledgement.

        Raises:
            BrokerError: the connection was lost.

        """
        await self.submit(topic, payload, qos=qos, retain=retain, expiry_s=expiry_s)

    async def take_leave(self, topic: str, payload: bytes) -> None:
        """Say a last word, retained, also on a connection that was given up: the broker may read it still.

        At QoS 0: no answer is waited for. It goes before the farewell with which the connection is closed.
        """
        properties = publish_properties(None) if self._v5 else b""
        self._outlet.publish(publish_packet(topic, payload, number=0, retain=True, properties=properties))

    def _acknowledged(self, number: int, reason: int) -> None:
        pending = self._pending.pop(number, None)
        if pending is None:
            return
        if reason >= REFUSED:
            pending.future.set_exception(MessageRefused(f"MQTT reason {reason:#x}"))
        elif not pending.future.done():
            pending.future.set_result(None)
        if self._queue:
            self._outlet.publish(self._queue.popleft())

    def _lose_patience(self) -> None:
        """Fail where the oldest message has waited too long; else look again when it will have."""
        self._patience = None
        oldest = next(iter(self._pending.values()), None)
        if oldest is None:
            return
        if oldest.due_s <= self._loop.time():
            # A connection that has left one message unanswered is not trusted with the next.
            self.fail("publishing failed: Operation timed out")
        else:
            self._patience = self._loop.call_at(oldest.due_s, self._lose_patience)

    async def watch(self) -> None:
        """Return when the connection is lost, having failed all that was pending. Nothing is ever read here."""
        try:
            async for _ in self._client.messages:
                pass
        except aiomqtt.MqttError as error:
            self.fail(f"connection lost: {error.__cause__ or error}")

    def fail(self, reason: str) -> None:
        """Fail what is pending and all that will be submitted."""
        if self._lost is None:
            self._lost = reason
            pending, self._pending = self._pending, {}
            self._queue.clear()
            for message in pending.values():
                if not message.future.done():
                    message.future.set_exception(BrokerError(reason))
            if self._patience:
                self._patience.cancel()
            self.lost.set()


def _seen(future: asyncio.Future[None]) -> None:
    """Take note of a failure, so that a caller may drop the future of a message that may be lost."""
    if future.done() and not future.cancelled():
        future.exception()


async def _received(client: aiomqtt.Client) -> AsyncIterator[Received]:
    with _translated():
        async for message in client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else str(message.payload or "").encode()
            yield Received(str(message.topic), payload, bool(message.retain))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except aiomqtt.MqttError as error:
        raise BrokerError(str(error)) from error


def _code(reason: object) -> int:
    return reason.value if isinstance(reason, ReasonCode) else reason if isinstance(reason, int) else 0


def _tls_context(credentials: Credentials) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=credentials.ca_file)
        if credentials.client_cert:
            context.load_cert_chain(credentials.client_cert, credentials.client_key)
    except OSError as error:  # ssl.SSLError is one
        raise BrokerRefused(f"TLS: a certificate or key cannot be used: {error}") from error
    return context
