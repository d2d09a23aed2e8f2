"""From the pipeline's work to the disk, and then to the publisher: what is published was committed first."""

import asyncio
import zlib
from collections import defaultdict
from typing import NoReturn

import msgspec
import structlog

from config.schema import Config
from daemon import clock, hummingbot, topics
from daemon.line import Draft, Line, LineWork, Snapshot
from daemon.metrics import Metrics
from daemon.outbox import Limits
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.store import LineCommit, Message, Prune, Store
from daemon.tables import ROW_BYTES
from feeds.market import NS_PER_DAY, NS_PER_S

PRUNE_EVERY = 256
"""Candles of a line between two prunings of its journal."""
COMMIT_PAUSE_MAX_S = 0.05
"""A transaction is followed by a pause of twice its length, but by no longer one."""
LIVE_AT_ONCE = 64
"""Markets whose provisional signals are computed before the event loop gets its turn."""
LIVE_PATIENCE_S, LIVE_POLL_S = 1.0, 0.01
"""How long provisional signals wait for durable ones to be acknowledged, and how often they look."""


class Committer:
    """Collects what all lines have done, once per turn of the event loop, into one transaction."""

    def __init__(
        self, config: Config, pipeline: Pipeline, store: Store, publisher: Publisher, metrics: Metrics
    ) -> None:
        self._pipeline, self._store, self._publisher, self._metrics = pipeline, store, publisher, metrics
        self._base = config.mqtt.base_topic
        self._candles, self._hummingbot = config.mqtt.publish_candles, config.mqtt.hummingbot
        self._kept = config.store
        self._day = 0
        self._now_ns = 0
        """The exchanges' time, by the newest of the markets that had work."""
        self._live_s = config.live.min_interval_ms / 1e3
        self._limits = Limits.of(
            hours=config.store.outbox_max_hours,
            rows=config.store.outbox_max_rows,
            size_bytes=config.store.outbox_max_bytes,
        )
        self._sent_limits = Limits.of(
            hours=24 * config.store.sent_max_days,
            rows=config.store.sent_max_rows,
            size_bytes=config.store.sent_max_bytes,
        )
        self._moved, self._stirred = asyncio.Event(), asyncio.Event()
        self._log = structlog.get_logger()

    def moved(self) -> None:
        """Note that there may be work; it is done when the loop's present turn has handed over all it has."""
        self._moved.set()
        self._stirred.set()

    async def run(self) -> NoReturn:
        """Commit work as it comes, until cancelled. What goes wrong here ends the daemon: its work cannot be redone."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            began_s = clock.monotonic_s()
            if self.flush():
                # When many candles close at once they are committed together, or most of the time would go to the disk.
                await asyncio.sleep(min(COMMIT_PAUSE_MAX_S, 2 * (clock.monotonic_s() - began_s)))

    def flush(self) -> bool:
        """Commit and hand on what the lines have done; tell whether it was anything."""
        work = self._pipeline.take_work()
        if not work:
            return False
        self._now_ns = max(self._now_ns, *(self._pipeline.markets[line.key].clock.now_ns for line, _ in work))
        commits = [self._commit_of(line, done) for line, done in work]
        rows = self._store.commit(commits, sent=self._sent_limits, now_ns=self._now_ns)
        self._tell_stages([draft for _, done in work for draft in done.drafts if draft.context.stages_us])
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
        shed = self._store.shed(self._limits, now_ns=self._now_ns, after_row=self._publisher.sent_to)
        if shed:
            self._log.warning("outbox_bounded", messages=shed, outbox=self._store.load().rows)
        self._forget_lines()
        return True

    def finish(self) -> None:
        """Commit what is left, and the state of every line, so that the next start has nothing to fold again."""
        self.flush()
        lines = [channel.line for market in self._pipeline.markets.values() for channel in market.channels.values()]
        commits = [LineCommit(line.name, [], _snapshot_of(line), line.model_key, []) for line in lines if line.next_seq]
        self._store.commit(commits)

    def _forget_lines(self) -> None:
        """Once a day of the exchange's forget lines that are no more."""
        day = self._now_ns // NS_PER_DAY
        if day != self._day:
            self._day = day
            gone = self._store.forget_lines(self._too_old_ns)
            if gone:
                self._log.info("lines_forgotten", lines=gone)

    @property
    def _too_old_ns(self) -> int:
        return self._now_ns - round(self._kept.journal_max_days * NS_PER_DAY)

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
            snapshot=_snapshot_of(line) if _is_due(line, done, self._kept.snapshot_every) else None,
            model=line.model_key,
            messages=[self._message_of(draft) for draft in done.drafts],
            prune=self._prune_of(line) if _is_due(line, done, PRUNE_EVERY) else None,
        )

    def _prune_of(self, line: Line) -> Prune:
        lines = sum(len(market.channels) for market in self._pipeline.markets.values())
        share = self._kept.journal_max_bytes // lines // (ROW_BYTES + len(line.name))
        floor = line.engine.reach + line.engine.model.epoch
        return Prune(max(floor, min(self._kept.journal_keep, share)), floor, self._too_old_ns)

    def _message_of(self, draft: Draft) -> Message:
        if draft.receive_time_ns:
            latency_ns = clock.now_ns() - draft.receive_time_ns
            draft.context.latency_us = latency_ns // 1000
            self._metrics.candle_to_signal_seconds.observe(latency_ns / NS_PER_S)
        return Message(draft.seq, draft.topic, draft.time_ns, draft.identity, topics.encode(draft.context))

    def _tell_stages(self, drafts: list[Draft]) -> None:
        """Count where the time of messages went that are committed now; the publisher adds what comes after."""
        now_ns, taken_us = clock.now_ns(), defaultdict[str, list[int]](list)
        for draft in drafts:
            for stage, value_us in (draft.context.stages_us or {}).items():
                taken_us[stage].append(max(0, value_us))  # two clocks may disagree
            taken_us["store"].append((now_ns - draft.drafted_ns) // 1000)
        for stage, values_us in taken_us.items():
            self._metrics.stages.observe(stage, values_us)

    def _account(self, line: Line, done: LineWork) -> None:
        exchange = line.market.exchange
        for candle in done.candles:
            self._metrics.candles_closed_total.labels(exchange, candle.origin).inc()
        for draft in done.drafts:
            self._metrics.signals_total.labels(exchange, draft.kind).inc()

    async def live(self) -> NoReturn:
        """Publish provisional signals of the markets that moved, at the configured pace, until cancelled."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            for rest in range(self._pipeline.moved, 0, -LIVE_AT_ONCE):
                await self._let_durable_pass()
                self._answer_live()
                if rest > LIVE_AT_ONCE:
                    await asyncio.sleep(0)
            if self._live_s:
                await asyncio.sleep(self._live_s)

    async def _let_durable_pass(self) -> None:
        """Let signals that are decided go first, for a while: a broker that is slow ends nothing."""
        until_s = clock.monotonic_s() + LIVE_PATIENCE_S
        while (self._pipeline.has_work or self._publisher.in_flight) and clock.monotonic_s() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(LIVE_POLL_S)

    def _answer_live(self) -> None:
        began_s = clock.monotonic_s()
        answers = self._pipeline.live(LIVE_AT_ONCE)
        if answers:
            self._metrics.step_seconds.observe((clock.monotonic_s() - began_s) / len(answers))
        for topic, payload in answers:
            self._publisher.volatile(topic, topics.encode(payload))
            self._metrics.live_total.labels(payload.exchange).inc()


def _snapshot_of(line: Line) -> Snapshot:
    return Snapshot(line.next_seq - 1, line.engine.snapshot())


def _is_due(line: Line, done: LineWork, every: int) -> bool:
    """Tell whether what a line does every so many ordinals falls due; not for all lines at the same minute."""
    phase = zlib.crc32(line.name.encode())
    return any((row.seq + phase) % every == 0 for row in done.rows)
