"""Questions over MQTT: ``request/{command}`` is answered on ``response/{command}``, echoing ``transaction``.

It reads on a connection of its own. A follower who missed something asks for it again with ``replay``: everything
durable is a fold, so what is sent again is the same to the byte but for ``context``.
"""

import asyncio

import msgspec
import structlog

from config.load import ConfigError
from daemon import clock, log_setup, topics
from daemon.health import Reporter
from daemon.mqtt import BrokerError, MqttLink
from daemon.publisher import Publisher
from daemon.reload import Reloader
from daemon.store import Store
from daemon.topics import Request, Response
from feeds.backoff import Backoff

REPLAY_MAX = 1000
"""Messages sent again per request; ask on from the next `seq`."""
REQUEST_BYTES_MAX = 4096


class RequestFault(Exception):
    """The request cannot be answered; the text says why."""


class Requests:
    """Answers requests."""

    def __init__(
        self,
        link: MqttLink,
        publisher: Publisher,
        store: Store,
        reporter: Reporter,
        reloader: Reloader,
        *,
        base_topic: str,
    ) -> None:
        self._link, self._publisher, self._store = link, publisher, store
        self._reporter, self._reloader = reporter, reloader
        self._base = base_topic
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Answer until cancelled; answers leave through the publisher, so its connection comes first."""
        await self._publisher.greeted.wait()
        backoff = Backoff(clock.rng())
        while True:
            began_s = clock.monotonic_s()
            try:
                async with self._link.follow(f"{self._base}/request/+") as messages:
                    async for message in messages:
                        if not message.retained:
                            self._answer(message.topic.rsplit("/", 1)[1], message.payload)
            except BrokerError as error:
                self._log.debug("requests_unreachable", reason=str(error))
            took_s = clock.monotonic_s() - began_s
            await asyncio.sleep(backoff.delay_s(live_s=took_s, since_attempt_s=took_s))

    def _answer(self, command: str, payload: bytes) -> None:
        transaction: str | int | None = None
        try:
            if len(payload) > REQUEST_BYTES_MAX:
                raise RequestFault(f"a request has at most {REQUEST_BYTES_MAX} bytes")
            request = msgspec.json.decode(payload or b"{}", type=Request)
            transaction = request.transaction
            data = self._do(command, request)
            response = Response(transaction=transaction, ok=True, data=data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestFault) as error:
            response = Response(transaction=transaction, ok=False, error=str(error))
        self._publisher.volatile(f"{self._base}/response/{command}", topics.encode(response), qos=1)

    def _do(self, command: str, request: Request) -> dict[str, object]:
        if command == "status":
            info, health = self._reporter.info(), self._reporter.health()
            return {"info": msgspec.to_builtins(info), "health": msgspec.to_builtins(health)}
        if command == "replay":
            return self._replay(request)
        if command == "log_level":
            return self._log_level(request)
        if command == "reload":
            return self._reload()
        raise RequestFault(f"unknown command {command!r}; known: log_level, reload, replay, status")

    def _replay(self, request: Request) -> dict[str, object]:
        if request.topic is None or request.from_seq is None:
            raise RequestFault("replay needs topic and from_seq")
        rows = self._store.sent(request.topic, request.from_seq, REPLAY_MAX)
        for row in rows:
            self._publisher.again(row)
        return {"messages": len(rows), "last_seq": rows[-1].seq if rows else None}

    def _reload(self) -> dict[str, object]:
        try:
            return self._reloader.reload()
        except ConfigError as error:
            raise RequestFault(str(error)) from error

    def _log_level(self, request: Request) -> dict[str, object]:
        if request.level not in ("debug", "info", "warning", "error"):
            raise RequestFault("log_level needs level: debug, info, warning or error")
        log_setup.set_level(request.level)
        return {"level": request.level}
