"""From the pipeline's work to the disk, and then to the publisher: what is published was committed first."""

import asyncio
from typing import NoReturn

import msgspec
import structlog

from config.schema import Config
from daemon import clock, hummingbot, topics
from daemon.line import Draft, Line, LineWork
from daemon.metrics import Metrics
from daemon.outbox import Limits
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.store import LineCommit, Message, Store
from feeds.market import NS_PER_S

PRUNE_EVERY = 256
"""Candles of a line between two prunings of its journal and outbox."""


class Committer:
    """Collects what all lines have done, once per turn of the event loop, into one transaction."""

    def __init__(
        self, config: Config, pipeline: Pipeline, store: Store, publisher: Publisher, metrics: Metrics
    ) -> None:
        self._pipeline, self._store, self._publisher, self._metrics = pipeline, store, publisher, metrics
        self._base = config.mqtt.base_topic
        self._candles, self._hummingbot = config.mqtt.publish_candles, config.mqtt.hummingbot
        self._keep = config.store.journal_keep
        self._live_s = max(0.02, config.live.min_interval_ms / 1e3)
        self._limits = Limits.of(
            hours=config.store.outbox_max_hours,
            rows=config.store.outbox_max_rows,
            size_bytes=config.store.outbox_max_bytes,
        )
        self._moved = asyncio.Event()
        self._log = structlog.get_logger()

    def moved(self) -> None:
        """Note that there may be work; it is done when the loop's present turn has handed over all it has."""
        self._moved.set()

    async def run(self) -> NoReturn:
        """Commit work as it comes, until cancelled. What goes wrong here ends the daemon: its work cannot be redone."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            self.flush()

    def flush(self) -> None:
        """Commit and hand on what the lines have done."""
        work = self._pipeline.take_work()
        if not work:
            return
        rows = self._store.commit([self._commit_of(line, done) for line, done in work])
        expiry_s = {}
        for line, done in work:
            self._account(line, done)
            if done.drafts:
                remaining_ns = done.drafts[-1].valid_until_ns - self._pipeline.markets[line.key].clock.now_ns
                expiry_s[line.topic] = max(1, remaining_ns // NS_PER_S + 1)
            self._tell_quality(line, done)
            if self._hummingbot:
                self._predict(line, done)
            if self._candles:
                topic = topics.spec_topic(self._base, line.market, line.spec, "candle")
                for candle in done.candles:
                    self._publisher.volatile(
                        topic, topics.encode(topics.candle_message(line.market, line.spec, candle))
                    )
        self._publisher.added(rows, expiry_s)
        shed = self._store.shed(self._limits, now_ns=self._pipeline.now_ns, after_row=self._publisher.sent_to)
        if shed:
            self._log.warning("outbox_bounded", messages=shed, outbox=self._store.load().rows)

    def _tell_quality(self, line: Line, done: LineWork) -> None:
        for ours, official, repaired in map(msgspec.structs.astuple, done.mismatches):
            told = topics.quality_message(line.market, line.spec, ours, official, repaired=repaired)
            self._publisher.volatile(
                topics.spec_topic(self._base, line.market, line.spec, "quality"), topics.encode(told), qos=1
            )
            figures = [difference.figure for difference in told.differences]
            self._log.warning(
                "candle_mismatch",
                market=line.market.symbol,
                candles=line.spec.text,
                seq=told.seq,
                figures=figures,
                repaired=repaired,
            )

    def _predict(self, line: Line, done: LineWork) -> None:
        """Publish what hummingbot reads. It has one topic a market: the first candle spec speaks, on time or not."""
        if next(iter(self._pipeline.markets[line.key].channels)) != line.spec.text:
            return
        for draft in done.drafts:
            if draft.kind == "signal" and not draft.context.late:
                topic, payload = hummingbot.prediction(line.market, draft.identity, draft.time_ns)
                self._publisher.volatile(topic, topics.encode(payload), qos=1)

    def _commit_of(self, line: Line, done: LineWork) -> LineCommit:
        return LineCommit(
            line=line.name,
            rows=done.rows,
            snapshot=line.engine.snapshot() if done.rows else None,
            snapshot_seq=line.next_seq - 1,
            model=line.model_key,
            messages=[self._message_of(draft) for draft in done.drafts],
        )

    def _message_of(self, draft: Draft) -> Message:
        if draft.receive_time_ns:
            latency_ns = clock.now_ns() - draft.receive_time_ns
            draft.context.latency_us = latency_ns // 1000
            self._metrics.candle_to_signal_seconds.observe(latency_ns / NS_PER_S)
        return Message(draft.seq, draft.topic, draft.time_ns, draft.identity, topics.encode(draft.context))

    def _account(self, line: Line, done: LineWork) -> None:
        exchange = line.market.exchange
        for candle in done.candles:
            self._metrics.candles_closed_total.labels(exchange, candle.origin).inc()
        for draft in done.drafts:
            self._metrics.signals_total.labels(exchange, draft.kind).inc()
        if any(row.seq % PRUNE_EVERY == 0 for row in done.rows):
            self._store.prune(line.name, keep_from_seq=line.next_seq - self._keep, keep_messages=self._keep)

    async def live(self) -> NoReturn:
        """Publish provisional signals of the markets that moved, at the configured pace, until cancelled."""
        while True:
            await asyncio.sleep(self._live_s)
            began_s = clock.monotonic_s()
            answers = self._pipeline.live()
            if answers:
                self._metrics.step_seconds.observe((clock.monotonic_s() - began_s) / len(answers))
            for topic, payload in answers:
                self._publisher.volatile(topic, topics.encode(payload))
                self._metrics.live_total.labels(payload.exchange).inc()
