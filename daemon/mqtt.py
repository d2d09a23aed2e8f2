"""MQTT connections: the only user of aiomqtt (what asyncio-mqtt is called today).

A link knows how to reach one broker. `connect` gives a connection for publishing and `follow` one for reading; they are
never the same, as each would wait for the other's acknowledgements. MQTT 5 is tried first, and 3.1.1 from then on
where the broker does not know it. Sessions are clean and nothing is sent again behind the caller's back: what was not
acknowledged when a connection was lost fails, and the caller's outbox sends it once more, in order.
"""

import asyncio
import contextlib
import functools
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

WRONG_PROTOCOL = 0x84
REFUSALS = frozenset({0x85, 0x86, 0x87, 0x8A, 0x8C})
"""MQTT 5 reason codes (§3.2.2.2) that the same CONNECT will meet again: client id, user name or password, not
authorized, banned, authentication method. paho gives the 3.1.1 return codes the same numbers."""
RECEIVE_QUEUE_MAX = 10_000
"""Messages read and not yet taken by the caller of `follow`; aiomqtt drops and logs those past it."""


class BrokerError(Exception):
    """The broker or the network failed; trying again later is right."""


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
            connection = Connection(client, v5=self.protocol is aiomqtt.ProtocolVersion.V5)
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
    async def _client(self, *, suffix: str = "", with_will: bool = True) -> AsyncGenerator[aiomqtt.Client]:
        client = await self._entered(suffix, with_will)
        try:
            yield client
        finally:
            # Leaving may fail where the connection is gone already; that it is gone has been told elsewhere.
            with contextlib.suppress(aiomqtt.MqttError):
                await client.__aexit__(None, None, None)
            # Nobody may have been reading when it was lost, and asyncio complains of errors that nobody looked at.
            _seen(client._disconnected)

    async def _entered(self, suffix: str, with_will: bool) -> aiomqtt.Client:
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
            raise BrokerError(f"{self.where}: {error}") from error

    def _make(self, suffix: str, with_will: bool) -> aiomqtt.Client:
        v5 = self.protocol is aiomqtt.ProtocolVersion.V5
        will = self._will if with_will else None
        client = aiomqtt.Client(
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
        client.pending_calls_threshold = sys.maxsize  # how many may wait is the outbox's to say
        return client


class Connection:
    """One open connection for publishing."""

    def __init__(self, client: aiomqtt.Client, *, v5: bool) -> None:
        self._client, self._v5 = client, v5
        self._pending: dict[asyncio.Future[None], asyncio.Task[None]] = {}
        self._lost: str | None = None
        self.lost = asyncio.Event()
        """Set once the connection is gone; what was pending has failed by then."""

    def submit(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> asyncio.Future[None]:
        """Send without waiting, in the order of the calls; the future resolves at the broker's acknowledgement.

        It fails with BrokerError when the connection is lost; one acknowledgement that takes longer than the link's
        timeout counts as that. At QoS 0 it resolves once the message is with the socket. Only MQTT 5 keeps `expiry_s`.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_seen)
        if self._lost is not None:
            future.set_exception(BrokerError(self._lost))
            return future
        properties = _properties(expiry_s) if self._v5 else None
        # Tasks start in the order they were made, and aiomqtt hands the message to paho before its first await.
        call = functools.partial(self._client.publish, topic, payload, qos, retain, properties)
        self._pending[future] = asyncio.create_task(self._settle(future, call), name="mqtt-publish")
        return future

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        """Send and wait for the acknowledgement.

        Raises:
            BrokerError: the connection was lost.

        """
        await self.submit(topic, payload, qos=qos, retain=retain, expiry_s=expiry_s)

    async def _settle(self, future: asyncio.Future[None], call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except aiomqtt.MqttError as error:
            # A connection that has left one message unanswered is not trusted with the next.
            self.fail(f"publishing failed: {error}")
            return
        if self._pending.pop(future, None) is not None and not future.done():
            future.set_result(None)

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
            for future, task in pending.items():
                task.cancel()
                if not future.done():
                    future.set_exception(BrokerError(reason))
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


@functools.lru_cache(maxsize=64)
def _properties(expiry_s: int | None) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = "application/json"
    if expiry_s is not None:
        properties.MessageExpiryInterval = max(1, expiry_s)
    return properties


def _tls_context(credentials: Credentials) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=credentials.ca_file)
        if credentials.client_cert:
            context.load_cert_chain(credentials.client_cert, credentials.client_key)
    except OSError as error:  # ssl.SSLError is one
        raise BrokerRefused(f"TLS: a certificate or key cannot be used: {error}") from error
    return context
