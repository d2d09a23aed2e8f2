"""An MQTT broker in memory; of the client, aiomqtt's part and the wire's as far as `daemon.mqtt` uses them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, Self

import aiomqtt

from tests.simulation.loop import VirtualLoop
from tests.simulation.world import World

LATENCY_S = (0.001, 0.02)
NOT_AUTHORIZED = 0x87


class Told(NamedTuple):
    """A message that the broker took, and gave to who follows."""

    at_s: float
    topic: str
    payload: bytes
    retain: bool


class Follower:
    """Who subscribes to the durable streams, and drops duplicates."""

    def __init__(self) -> None:
        self.streams: dict[str, dict[int, str]] = {}
        """Per topic and ordinal: everything but the context."""
        self.newest: dict[str, int] = {}
        self.objection = ""
        """The first thing that must not be; empty while all is well."""

    def hear(self, topic: str, raw: bytes, at_s: float) -> None:
        payload = json.loads(raw)
        del payload["context"]
        seq, identity = payload["seq"], json.dumps(payload, sort_keys=True)
        stream, newest = self.streams.setdefault(topic, {}), self.newest.get(topic)
        if seq not in stream and newest is not None and seq != newest + 1:
            self.objection = self.objection or f"{topic}: {seq} came after {newest} at {at_s:.3f} s"
        if stream.setdefault(seq, identity) != identity:
            self.objection = self.objection or f"{topic}: two messages for {seq}: {stream[seq]} {identity}"
        self.newest[topic] = max(seq, newest or 0)


class Broker:
    """The broker of one run; a follower hears each message at the moment it is taken."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told: list[Told] = []
        self.follower = Follower()
        self.retained: dict[str, bytes] = {}
        self.sessions: dict[str, Link] = {}
        self.mute_farewells: set[bytes] = set()
        """Wills of those who left politely, so that it was not told, while their status said that they are there."""
        self.chance = world.chance("broker")

    def restart(self, down_s: float, *, forget: bool) -> None:
        """Be gone for so long, and come back with what was retained, or without."""
        for link in list(self.sessions.values()):
            link.cut("broker gone")
        self.sessions.clear()
        if forget:
            self.retained.clear()
        self.world.begin("broker_down", down_s)

    def cut_all(self, reason: str, *, will: bool = True) -> int:
        """End every connection without a farewell."""
        links = list(self.sessions.values())
        for link in links:
            link.cut(reason)
            self.gone(link, will=will)
        return len(links)

    def gone(self, link: "Link", *, will: bool) -> None:
        """Forget a connection; tell its last will."""
        if self.sessions.get(link.name) is link:
            del self.sessions[link.name]
            if will and link.will is not None:
                self.take(link.will.topic, link.will.payload, retain=True)

    def leave(self, link: "Link") -> None:
        """Let a client go that says goodbye: its will is void."""
        if link.will and self.retained.get(link.will.topic, link.will.payload) != link.will.payload:
            self.mute_farewells.add(link.will.payload)
        self.gone(link, will=False)

    def take(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Accept a message."""
        self.told.append(Told(self.world.now_s, topic, payload, retain))
        if topic.endswith("/signal"):
            self.follower.hear(topic, payload, self.world.now_s)
        if retain:
            self.retained[topic] = payload


class Link:
    """One connection, the broker's end."""

    def __init__(self, broker: Broker, name: str, will: Any, keepalive_s: float, lost: Callable[[str], None]) -> None:
        self.broker, self.name, self.will, self.keepalive_s = broker, name, will, keepalive_s
        self.dead = False
        """Whether nothing passes, though nobody said so."""
        self.heard_s = broker.world.now_s
        self.leaving = False
        self._lost = lost
        self._watch()

    def cut(self, reason: str) -> None:
        self.dead = True
        self._lost(reason)

    def _watch(self) -> None:
        """Let the broker miss its client, and the client its broker."""
        world, broker = self.broker.world, self.broker
        if broker.sessions.get(self.name, self) is not self or self.leaving:
            return
        if self.dead and world.now_s - self.heard_s > 1.5 * self.keepalive_s:
            broker.gone(self, will=True)
            self._lost("keep-alive timeout")
            return
        world.timeline.after(5.0, self._watch)


class Client:
    """What `MqttLink` makes of aiomqtt.Client and the wire beside it: same calls, same exceptions."""

    def __init__(self, broker: Broker, name: str, will: Any, *, timeout_s: float, keepalive_s: float) -> None:
        self._broker, self._world = broker, broker.world
        self._name, self._will, self._timeout_s, self._keepalive_s = name, will, timeout_s, keepalive_s
        self._loop = asyncio.get_running_loop()
        self._disconnected: asyncio.Future[None] = self._loop.create_future()
        self._link: Link | None = None
        self._arrives_s = 0.0
        self._returns_s = 0.0
        self.receive_max = 65535
        self.waiting_bytes = 0

    @property
    def _alive(self) -> bool:
        return isinstance(self._loop, VirtualLoop) and self._loop.alive and not self._loop.is_closed()

    async def __aenter__(self) -> Self:
        world, broker = self._world, self._broker
        await asyncio.sleep(broker.chance.uniform(*LATENCY_S) * 3)
        if world.on("broker_silence"):
            await asyncio.sleep(self._timeout_s)
            raise aiomqtt.MqttError("Operation timed out")
        if world.on("broker_down"):
            raise aiomqtt.MqttError("[Errno 111] Connection refused")
        if world.on("broker_auth"):
            world.planted.add("broker_auth")
            raise aiomqtt.MqttCodeError(NOT_AUTHORIZED, "Not authorized")
        if self._name in broker.sessions:
            old = broker.sessions[self._name]
            old.cut("session taken over")
            broker.gone(old, will=False)
        self._link = Link(broker, self._name, self._will, self._keepalive_s, self._lose)
        broker.sessions[self._name] = self._link
        return self

    async def __aexit__(self, *_: object) -> None:
        link = self._link
        if self._disconnected.done() or link is None:
            return
        await asyncio.sleep(max(0.0, self._arrives_s - self._world.now_s))  # what was sent before is read before
        link.leaving = True
        if not link.dead and self._alive:
            self._broker.leave(link)
        if not self._disconnected.done():
            self._disconnected.set_result(None)

    def _lose(self, reason: str) -> None:
        if self._alive and not self._disconnected.done():
            self._disconnected.set_exception(aiomqtt.MqttError(reason))

    def outlet(self, acknowledged: Callable[[int, int], None]) -> Self:
        """Take the place of the wire that packets are published on."""
        self._acknowledge = acknowledged
        return self

    def publish(self, packet: bytes) -> None:
        topic, payload, number, retain = published(packet)
        self._arrives_s = max(self._arrives_s, self._world.now_s + self._broker.chance.uniform(*LATENCY_S))
        self._world.timeline.at(self._arrives_s, lambda: self._arrive(topic, payload, retain, number or None))

    def _arrive(self, topic: str, payload: bytes, retain: bool, number: int | None) -> None:
        link, world = self._link, self._world
        assert link is not None
        if self._broker.sessions.get(link.name) is not link:
            return
        if world.on("broker_silence"):
            link.dead = True
        if link.dead:
            return
        link.heard_s = world.now_s
        self._broker.take(topic, payload, retain=retain)
        if number is None:
            return
        if world.in_force("ack_loss") and self._broker.chance.random() < 0.2 and world.on("ack_loss"):
            return
        stalled_s = world.active["ack_stall"] if world.on("ack_stall") else world.now_s
        self._returns_s = max(self._returns_s, stalled_s + self._broker.chance.uniform(*LATENCY_S))
        world.timeline.at(self._returns_s, lambda: self._acknowledged(number))

    def _acknowledged(self, number: int) -> None:
        if self._alive and self._link and not self._link.dead:
            self._acknowledge(number, 0)

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> list[int]:
        if self._disconnected.done():
            raise aiomqtt.MqttCodeError(4, "Could not subscribe to topic")
        await asyncio.sleep(2 * LATENCY_S[1])
        return [qos for _, qos in filters]

    @property
    def messages(self) -> AsyncIterator[Any]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        """Nothing is ever sent to the daemon; the end of the connection shows here."""
        await asyncio.wait([self._disconnected])
        raise aiomqtt.MqttError("Disconnected during message iteration")
        yield


def published(packet: bytes) -> tuple[str, bytes, int, bool]:
    """Read a PUBLISH of MQTT 5: topic, payload, packet identifier (0 at QoS 0), retained."""
    at = 2
    while packet[at - 1] & 0x80:
        at += 1
    end = at + 2 + int.from_bytes(packet[at : at + 2])
    topic, number = packet[at + 2 : end].decode(), 0
    if packet[0] & 0x06:
        number, end = int.from_bytes(packet[end : end + 2]), end + 2
    return topic, packet[end + 1 + packet[end] :], number, bool(packet[0] & 1)
