"""The shipper: from the outbox to the broker, in order, and the retained topics that say how things stand.

Broker trouble stays in here. The pipeline writes to the outbox and goes on; a connection that is lost is made again
with capped jittered delays, and everything the broker has not acknowledged is sent again in order. Followers drop
duplicates by `id`.
"""

import asyncio
import contextlib
import functools
import random
from collections.abc import Callable

import structlog

from daemon.mqtt import BrokerError, Connection, MessageRefused, MqttLink
from daemon.outbox import Window
from daemon.store import OutboxRow, Store
from daemon.topics import with_context
from feeds.backoff import Backoff

RETRY_CAP_S = 5.0
"""Longest pause between two tries to reach the broker: signals wait for it, and a broker minds no callers."""
DRAIN_S = 2.5
"""How long a graceful stop waits for the broker's acknowledgements; the whole of it is to take at most five seconds."""
GOODBYE_S = 1.0
"""How long it then waits for that of its last word."""
ACKNOWLEDGED_MAX = 500
"""Acknowledgements that are written down together while more are under way; those lost in a crash are sent again."""


class Publisher:
    """One connection to the broker, for writing."""

    def __init__(
        self,
        link: MqttLink,
        store: Store,
        *,
        status_topic: str,
        online: bytes,
        offline: bytes,
        stamp: Callable[[], bytes],
        inflight_max: int,
        rng: random.Random,
        shipped_us: Callable[[list[int]], None] = lambda _: None,
    ) -> None:
        """Set up; `stamp` gives the context fields of this very publication, as JSON without braces.

        `shipped_us` is told how long messages took from the store to the broker's acknowledgement, those sent at once.
        """
        self._link, self._store, self._stamp = link, store, stamp
        self._status_topic, self._online, self._offline = status_topic, online, offline
        self._window = Window(inflight_max)
        self._backoff = Backoff(rng, cap_s=RETRY_CAP_S, reset_after_s=RETRY_CAP_S)
        self._log = structlog.get_logger().bind(broker=link.where)
        self._retained: dict[str, bytes] = {}
        self._newest: dict[str, OutboxRow] = {row.topic: row for row in store.newest()}
        self._expires_s: dict[str, float] = {}
        self._shipped_us, self._took_us = shipped_us, list[int]()
        self._stored_s: dict[int, float] = {}
        """When rows were committed that a connection was there for."""
        self._refused: set[str] = set()
        """Topics that the broker did not let us write to, once at least."""
        self._wake = asyncio.Event()
        self._connection: Connection | None = None
        self.greeted = asyncio.Event()
        """Set once the broker has taken us for the first time."""
        self.shipped = 0
        """Durable messages acknowledged in this life."""
        self.reconnects = 0

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached."""
        return self._connection is not None

    @property
    def in_flight(self) -> bool:
        """Whether durable messages are on their way."""
        return self.connected and not self._window.is_empty

    @property
    def sent_to(self) -> int:
        """The newest row that was ever handed to a connection in this life."""
        return self._window.sent_to

    def retain(self, topic: str, payload: bytes) -> None:
        """Set what a retained topic says, now and after each reconnection."""
        self._retained[topic] = payload
        if self._connection:
            self._connection.submit(topic, payload, qos=1, retain=True)

    def volatile(self, topic: str, payload: bytes, *, qos: int = 0) -> None:
        """Publish what is worth nothing later; without a broker it is dropped."""
        if self._connection and (qos or not self._connection.congested):
            self._connection.submit(topic, payload, qos=qos)

    def again(self, row: OutboxRow) -> None:
        """Publish a delivered row once more, on request."""
        self.volatile(row.topic, with_context(row.identity, row.context, self._stamp() + b',"replayed":true'), qos=1)

    def added(self, rows: list[OutboxRow], expiry_s: dict[str, int]) -> None:
        """Take note of new rows in the outbox; `expiry_s` is the validity of `last` per signal topic."""
        now_s = asyncio.get_running_loop().time()
        for row in rows:
            self._newest[row.topic] = row
            self._expires_s.pop(row.topic, None)
            if self._connection:
                self._stored_s[row.row] = now_s
        self._expires_s.update({topic: now_s + s for topic, s in expiry_s.items()})
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Ship until `stop`, then drain and say offline.

        Raises:
            BrokerRefused: the broker does not take us as we are configured.

        """
        down = False
        while not stop.is_set():
            began_s = asyncio.get_running_loop().time()
            live_s = 0.0
            try:
                async with self._link.connect() as connection:
                    self._log.info("broker_restored" if down else "broker_connected", outbox=self._store.load().rows)
                    down = False
                    self.greeted.set()
                    try:
                        await self._serve(connection, stop)
                    finally:
                        await self._say_offline(connection)
                    live_s = asyncio.get_running_loop().time() - began_s
                    reason = "connection lost"
            except BrokerError as error:
                reason = str(error)
            finally:
                self._connection = None
                self._stored_s.clear()
                self._note_acknowledged()
            if stop.is_set():
                return
            (self._log.debug if down else self._log.warning)("broker_lost", reason=reason)
            down = True
            self.reconnects += 1
            since_s = asyncio.get_running_loop().time() - began_s
            await _either(stop, self._backoff.delay_s(live_s=live_s, since_attempt_s=since_s))

    async def _serve(self, connection: Connection, stop: asyncio.Event) -> None:
        self._window.begin()
        connection.submit(self._status_topic, self._online, qos=1, retain=True)
        for topic, payload in self._retained.items():
            connection.submit(topic, payload, qos=1, retain=True)
        for row in self._newest.values():
            self._last(connection, row, with_context(row.identity, row.context, self._stamp()))
        self._connection = connection
        lost = asyncio.ensure_future(connection.lost.wait())
        lost.add_done_callback(lambda _: self._wake.set())
        stopping = asyncio.ensure_future(stop.wait())
        stopping.add_done_callback(lambda _: self._wake.set())
        try:
            while not connection.lost.is_set() and not stop.is_set():
                self._wake.clear()
                self._ship(connection)
                if self._window.is_empty or self._window.acknowledged >= ACKNOWLEDGED_MAX:
                    self._note_acknowledged()
                await self._wake.wait()
            if stop.is_set():
                await self._drain(connection)
        finally:
            lost.cancel()
            stopping.cancel()

    def _ship(self, connection: Connection) -> None:
        """Send what is pending, as far as the window of unacknowledged messages allows."""
        room = self._window.room
        for row in self._store.pending(self._window.cursor, room) if room > 0 else []:
            self._window.sent(row.row)
            payload = with_context(row.identity, row.context, self._stamp())
            sent = connection.submit(row.topic, payload, qos=1)
            sent.add_done_callback(functools.partial(self._settled, row=row.row, topic=row.topic))
            newest = self._newest.get(row.topic)
            if newest is not None and newest.row == row.row:
                self._last(connection, row, payload)

    def _last(self, connection: Connection, row: OutboxRow, payload: bytes) -> None:
        topic = row.topic.removesuffix("signal") + "last"
        expires_s = self._expires_s.get(row.topic)
        left_s = None if expires_s is None else max(1, int(expires_s - asyncio.get_running_loop().time()) + 1)
        connection.submit(topic, payload, qos=1, retain=True, expiry_s=left_s)

    def _settled(self, done: "asyncio.Future[None]", row: int, topic: str) -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, MessageRefused):
            self._window.refuse(row)
            if topic not in self._refused:
                self._refused.add(topic)
                self._log.error("message_refused", topic=topic, reason=str(error), hint="may this user write to it?")
        if done.cancelled() or error is not None:
            # A timed-out publish may still be delivered; the connection's end sends everything unacknowledged again.
            self._wake.set()
            return
        self._window.acknowledge(row)
        if (stored_s := self._stored_s.pop(row, None)) is not None:
            self._took_us.append(int(1e6 * (asyncio.get_running_loop().time() - stored_s)))
        self._wake.set()

    def _note_acknowledged(self) -> None:
        if rows := self._window.take_acknowledged():
            self.shipped += len(rows)
            self._store.acknowledge(rows)
        took_us, self._took_us = self._took_us, []
        self._shipped_us(took_us)

    async def _drain(self, connection: Connection) -> None:
        """Give the broker a little time for what is left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await self._ship_all(connection)
        self._note_acknowledged()
        if left := self._store.load().rows:
            self._log.warning("broker_drain_incomplete", outbox=left)

    async def _say_offline(self, connection: Connection) -> None:
        """Take our leave, however much is left and whatever ends us: who leaves politely has no last will."""
        try:
            async with asyncio.timeout(GOODBYE_S):
                return await connection.publish(self._status_topic, self._offline, qos=1, retain=True)
        except (TimeoutError, BrokerError) as error:
            reason = str(error) or "timeout"
        try:
            async with asyncio.timeout(GOODBYE_S):
                await connection.take_leave(self._status_topic, self._offline)
        except (TimeoutError, BrokerError):
            self._log.debug("broker_left_rudely", reason=reason)

    async def _ship_all(self, connection: Connection) -> None:
        while not connection.lost.is_set():
            self._wake.clear()
            self._note_acknowledged()
            self._ship(connection)
            if self._window.is_empty:
                return
            await self._wake.wait()


async def _either(stop: asyncio.Event, timeout_s: float) -> None:
    """Sleep, but not past `stop`."""
    try:
        async with asyncio.timeout(timeout_s):
            await stop.wait()
    except TimeoutError:
        return
