"""What does a start after a week's absence cost, with many markets?

Caveats first. Exchange, broker, daemon and follower share this machine's cores. The exchange is the emulator, which
counts weight as Binance does, 2,400 a minute, and refuses what comes beyond; prices are invented. The first start is a
market's whole warm-up of 976 candles, the second that and the messages of one epoch, 720 a market. Memory is the
daemon's resident set; the second start's peak stands beside the first one's.

    python -m benchmarks.absence [--markets 100] [--away-days 7]
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.company import (
    BEGIN_MS,
    CONFIG,
    DAY_MS,
    POLL_S,
    UNBOUNDED,
    Asked,
    Exchange,
    Follower,
    Memory,
    Message,
    following,
)
from benchmarks.harness import Row, faster, publish
from tests.daemon.brokers import Mosquitto
from tests.daemon.daemons import Daemon

QUESTION = "What does a start after a week's absence cost, with many markets?"
CAVEATS = (
    "exchange, broker, daemon and follower share this machine's cores",
    "the emulator counts weight as Binance does; prices are invented",
)
BUDGET = 2400
"""Weight that the exchange allows a minute."""
EPOCH = 720
FIRST_MS = BEGIN_MS + DAY_MS + DAY_MS // 2


class Start(NamedTuple):
    """What one start cost."""

    ready_s: float
    """Until every market was online."""
    told_s: float
    """Until every market had told what it had to."""
    peak_mb: float
    settled_mb: float
    asked: Asked


async def start(exchange: Exchange, at_ms: int, folder: Path, url: str, follower: Follower, wanted: int) -> Start:
    """Run the daemon until every market is online and `wanted` messages a market have come; then end it."""
    port = await exchange.open(at_ms)
    follower.states.clear()
    known = follower.count
    async with Daemon(folder, CONFIG.format(url=url, folder=folder, port=port)) as daemon:
        began_s, memory = time.monotonic(), Memory(daemon)

        async def until(true: Callable[[], bool]) -> float:
            while not true():
                daemon.alive()
                await asyncio.sleep(POLL_S)
            return time.monotonic() - began_s

        ready_s = await until(lambda: 0 < len(follower.states) - 1 == follower.online)
        markets = follower.online
        told_s = await until(lambda: follower.count - known >= wanted * markets)
        found = Start(ready_s, told_s, memory.peak_mb(), memory.now_mb(), Asked({}, []))
        if await daemon.end() != 0:
            raise SystemExit(daemon.log.read_text()[-3000:])
    return found._replace(asked=await exchange.close())


def check(streams: dict[str, list[Message]], markets: int, first: dict[str, int]) -> None:
    """Hold what was told after the absence: one gap, then an epoch in order, marked late, and no hole anywhere."""
    assert len(streams) == markets, f"{len(streams)} streams"
    for topic, stream in streams.items():
        after = stream[first[topic] :]
        assert [m.kind for m in after[:EPOCH]] == ["gap"] + ["signal"] * (EPOCH - 1), topic
        assert after[0].from_seq == stream[first[topic] - 1].seq + 1, topic
        assert [m.seq for m in after] == list(range(after[0].seq, after[0].seq + len(after))), topic
        assert all(m.context.late for m in after[:EPOCH]), topic


async def measure(markets: int, away_days: int, folder: Path) -> list[Row]:
    exchange, broker = Exchange(markets, days=away_days + 3), Mosquitto(folder, settings=UNBOUNDED)
    await broker.start()
    try:
        async with following(broker.url) as follower:
            fresh = await start(exchange, FIRST_MS, folder, broker.url, follower, 1)
            told = {topic: len(stream) for topic, stream in follower.streams.items()}
            back_ms = FIRST_MS + away_days * DAY_MS
            again = await start(exchange, back_ms, folder, broker.url, follower, EPOCH + 1)
            check(follower.streams, markets, told)
    finally:
        await broker.stop()
        exchange.end()
    for what, one in (("first", fresh), ("after the absence", again)):
        weights = " ".join(map(str, one.asked.weights))
        print(f"{what}: ready {one.ready_s:.1f} s, told {one.told_s:.1f} s, weight by minute {weights}", end="")
        print(f", peak {one.peak_mb:.0f} MB, at rest {one.settled_mb:.0f} MB, {one.asked.requests}")
    named = f"{markets} markets, {away_days} days away"
    least_s = 60 * sum(again.asked.weights) / BUDGET
    return [
        faster("absence.weight", f"weight of a minute, {named}", max(again.asked.weights), BUDGET, "allowed", "", 1.0),
        faster(
            "absence.ready", f"until all are online, {named}", again.ready_s, least_s, "the least of its weight", "s"
        ),
        faster("absence.memory", f"peak, {named}", again.peak_mb, fresh.peak_mb, "a first start", "MB", 0.8),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markets", type=int, default=100)
    parser.add_argument("--away-days", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(chosen.markets, chosen.away_days, Path(folder)))
    publish("absence", QUESTION, CAVEATS, rows)


if __name__ == "__main__":
    main()
