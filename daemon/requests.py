"""Questions over MQTT: ``request/{command}`` is answered on ``response/{command}``, echoing ``transaction``.

It reads on a connection of its own. A follower who missed something asks for it again with ``replay``: everything
durable is a fold, so what is sent again is the same to the byte but for ``context``.
"""

import asyncio

import msgspec
import structlog

from config.load import ConfigError
from daemon import clock, log_setup, recompute, topics
from daemon.health import Reporter
from daemon.line import Line
from daemon.mqtt import BrokerError, MqttLink
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.recompute import Span
from daemon.reload import Reloader
from daemon.store import OutboxRow, Store
from daemon.topics import Request, Response
from feeds.backoff import Backoff
from feeds.market import SEQ_PER_DAY

REPLAY_MAX = 1000
"""Messages sent again per request; ask on from the next `seq`."""
REQUEST_BYTES_MAX = 4096
REQUESTS_PER_S = 5.0
BURST = 20
"""Requests answered at once, and per second for long; what comes beyond is left unanswered and logged once a minute."""
_LOG_EVERY_S = 60.0
_COMMAND_MAX = 32


class RequestFault(Exception):
    """The request cannot be answered; the text says why."""


class Allowance:
    """So many requests at once, and so many per second for long (a token bucket)."""

    def __init__(self, per_s: float, burst: int, now_s: float) -> None:
        self._per_s, self._burst = per_s, float(burst)
        self._left, self._at_s = float(burst), now_s

    def take(self, now_s: float) -> bool:
        """Tell whether one more is allowed; it then counts."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Requests:
    """Answers requests."""

    def __init__(
        self,
        link: MqttLink,
        publisher: Publisher,
        store: Store,
        reporter: Reporter,
        reloader: Reloader,
        pipeline: Pipeline,
    ) -> None:
        self._link, self._publisher, self._store = link, publisher, store
        self._reporter, self._reloader = reporter, reloader
        self._pipeline, self._base = pipeline, pipeline.base_topic
        self._allowance = Allowance(REQUESTS_PER_S, BURST, clock.monotonic_s())
        self._refused, self._told_s = 0, -_LOG_EVERY_S
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
                        command = message.topic.rsplit("/", 1)[1]
                        if not message.retained and len(command) <= _COMMAND_MAX and self._allowed():
                            await self._answer(command, message.payload)
            except BrokerError as error:
                self._log.debug("requests_unreachable", reason=str(error))
            took_s = clock.monotonic_s() - began_s
            await asyncio.sleep(backoff.delay_s(live_s=took_s, since_attempt_s=took_s))

    def _allowed(self) -> bool:
        now_s = clock.monotonic_s()
        if self._allowance.take(now_s):
            return True
        self._refused += 1
        if now_s - self._told_s >= _LOG_EVERY_S:
            self._log.warning(
                "requests_refused", refused=self._refused, reason=f"more than {REQUESTS_PER_S:g} a second"
            )
            self._refused, self._told_s = 0, now_s
        return False

    async def _answer(self, command: str, payload: bytes) -> None:
        transaction: str | int | None = None
        try:
            if len(payload) > REQUEST_BYTES_MAX:
                raise RequestFault(f"a request has at most {REQUEST_BYTES_MAX} bytes")
            request = msgspec.json.decode(payload or b"{}", type=Request)
            transaction = request.transaction
            data = await self._replay(request) if command == "replay" else self._do(command, request)
            response = Response(transaction=transaction, ok=True, data=data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestFault) as error:
            response = Response(transaction=transaction, ok=False, error=str(error))
        self._publisher.volatile(f"{self._base}/response/{command}", topics.encode(response), qos=1)

    def _do(self, command: str, request: Request) -> dict[str, object]:
        if command == "status":
            info, health = self._reporter.info(), self._reporter.health()
            return {"info": msgspec.to_builtins(info), "health": msgspec.to_builtins(health)}
        if command == "log_level":
            return self._log_level(request)
        if command == "reload":
            return self._reload()
        raise RequestFault(f"unknown command {command!r}; known: log_level, reload, replay, status")

    async def _replay(self, request: Request) -> dict[str, object]:
        """Send again what is kept, and before it what can be computed again; what cannot is not there to be sent."""
        topic, from_seq = request.topic, request.from_seq
        if topic is None or from_seq is None:
            raise RequestFault("replay needs topic and from_seq")
        made = await self._made_again(topic, from_seq)
        after = made[-1].seq + 1 if made else from_seq
        rows = made + (self._store.sent(topic, after, REPLAY_MAX - len(made)) if self._joins(made) else [])
        for row in rows:
            self._publisher.again(row)
        first, last = (rows[0].seq, rows[-1].seq) if rows else (None, None)
        return {"messages": len(rows), "recomputed": len(made), "first_seq": first, "last_seq": last}

    def _joins(self, made: list[OutboxRow]) -> bool:
        """Tell whether what is kept begins where `made` ends; else whoever asks on gets what lies between."""
        if not made:
            return True
        after = made[-1].seq + 1
        begin, held = self._store.journal_begin(made[-1].line, after), self._store.first_held(made[-1].topic, after)
        return begin is None or held is None or begin >= held

    async def _made_again(self, topic: str, from_seq: int) -> list[OutboxRow]:
        """Make again what came before the oldest message that is kept, as far as the journal goes back."""
        lines = (channel.line for market in self._pipeline.markets.values() for channel in market.channels.values())
        line = next((line for line in lines if line.topic == topic), None)
        if line is None:
            return []
        held = self._store.first_held(topic, from_seq)
        span = (self._candles if line.spec.by_time else self._day)(line, from_seq, held)
        if span is None:
            return []
        start, first, last = span
        journal = self._store.journal(line.name, start, last)
        drafts = await asyncio.to_thread(recompute.messages, line, journal, first)
        return [
            OutboxRow(0, line.name, d.seq, topic, d.time_ns, d.identity, topics.encode(d.context))
            for d in drafts[:REPLAY_MAX]
        ]

    def _candles(self, line: Line, from_seq: int, held: int | None) -> tuple[int, int, int] | None:
        """Return where the fold begins, the first ordinal and the last of a time line that can be told."""
        oldest = self._store.journal_begin(line.name)
        if oldest is None:
            return None
        first = recompute.first_possible(line, from_seq, oldest=oldest)
        last = min(line.next_seq if held is None else held, first + REPLAY_MAX) - 1
        return (line.engine.fold_start(first), first, last) if last >= first else None

    def _day(self, line: Line, from_seq: int, held: int | None) -> tuple[int, int, int] | None:
        """Return the same of an event line, for one UTC day: the next begins a fold of its own."""
        days = {day: Span(*span) for day, span in self._store.journal_days(line.name).items()}
        span = recompute.day_possible(line, from_seq, days)
        if span is None:
            return None
        begin = span.last // SEQ_PER_DAY * SEQ_PER_DAY
        first = max(from_seq, begin)
        last = span.last if held is None else min(span.last, held - 1)
        return (span.first, first, last) if last >= max(first, begin + 1) else None

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
