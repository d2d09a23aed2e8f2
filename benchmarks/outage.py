"""What do feed and model notice of a broker that cannot be reached, at 500 signals a minute?

Caveats first. Exchange, broker, daemon and follower share this machine's cores. The broker is out of reach behind a
proxy that refuses connections, for as long as it was in reach before; so each minute without it stands beside one with
it, in one process. Latency is what the daemon writes into each signal: from the frame that closed a candle to the
commit, with all markets closing within the same moments, as they do. Prices are invented. With `--speed` minutes are
shorter, and signals more.

    python -m benchmarks.outage [--markets 100] [--speed 6] [--minutes 0.5]
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from benchmarks.company import (
    BEGIN_MS,
    CONFIG,
    DAY_MS,
    POLL_S,
    UNBOUNDED,
    Exchange,
    Follower,
    Memory,
    following,
    p50_p99_ms,
)
from benchmarks.harness import Row, faster, more, publish
from tests.daemon.brokers import Mosquitto
from tests.daemon.daemons import Daemon
from tests.daemon.proxy import Proxy

QUESTION = "What do feed and model notice of a broker that cannot be reached, at 500 signals a minute?"
CAVEATS = (
    "exchange, broker, daemon and follower share this machine's cores; prices are invented",
    "latency: from the frame that closed a candle to the commit",
)
BEGIN_AT_MS = BEGIN_MS + DAY_MS + DAY_MS // 2
TRADES_PER_MINUTE = 12
WANTED = 500
"""Signals a minute."""


async def measure(markets: int, speed: float, minutes: float, folder: Path) -> list[Row]:
    exchange = Exchange(markets, days=3, trades_per_minute=TRADES_PER_MINUTE, speed=speed)
    broker = Mosquitto(folder, settings=UNBOUNDED)
    await broker.start()
    try:
        port = await exchange.open(BEGIN_AT_MS)
        async with Proxy(broker.port) as proxy, following(broker.url) as follower:
            config = CONFIG.format(url=proxy.url, folder=folder, port=port)
            async with Daemon(folder, config) as daemon:
                return await _phases(daemon, proxy, follower, markets, speed, minutes)
    finally:
        await broker.stop()
        exchange.end()


async def _phases(
    daemon: Daemon, proxy: Proxy, follower: Follower, markets: int, speed: float, minutes: float
) -> list[Row]:
    memory = Memory(daemon)

    async def until(true: Callable[[], bool]) -> None:
        while not true():
            daemon.alive()
            await asyncio.sleep(POLL_S)

    await until(lambda: follower.online == markets and follower.count >= 2 * markets)
    marks, sizes_mb = [follower.newest], list[float]()
    await asyncio.sleep(60 * minutes)
    marks.append(follower.newest)
    sizes_mb.append(memory.now_mb())
    proxy.refuses = True
    proxy.cut()
    await asyncio.sleep(60 * minutes)
    sizes_mb.append(memory.now_mb())
    back_s = time.monotonic()
    proxy.refuses = False
    marks.append(marks[1] + int(minutes * speed))
    await until(lambda: all(stream[-1].seq > marks[2] for stream in follower.streams.values()))
    caught_s = time.monotonic() - back_s
    assert follower.out_of_order() == 0, f"{follower.out_of_order()} messages out of order, or missing"
    assert await daemon.end() == 0, daemon.log.read_text()[-3000:]
    latencies = [
        [
            float(message.context.latency_us)
            for stream in follower.streams.values()
            for message in stream
            if first < message.seq <= last and message.context.latency_us
        ]
        for first, last in pairwise(marks)
    ]
    assert min(map(len, latencies)) >= markets, f"too short: {marks}, {[*map(len, latencies)]} signals"
    rate = len(latencies[1]) / minutes
    (p50, p99), (down_p50, down_p99) = map(p50_p99_ms, latencies)
    print(f"{len(latencies[0])} signals before, {len(latencies[1])} meanwhile; whole again after {caught_s:.1f} s")
    named = f"{markets} markets, {minutes:g} min"
    return [
        more("outage.rate", f"signals a minute meanwhile, {named}", rate, WANTED, "asked for", "", 1.0),
        faster("outage.p50", f"candle to commit, median, {named}", down_p50, p50, "with the broker", "ms", 0.9),
        faster("outage.p99", f"candle to commit, 99 %, {named}", down_p99, p99, "with the broker", "ms", 0.8),
        faster("outage.memory", f"resident at its end, {named}", sizes_mb[1], sizes_mb[0], "before it", "MB", 0.95),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markets", type=int, default=100)
    parser.add_argument("--speed", type=float, default=6.0)
    parser.add_argument("--minutes", type=float, default=0.5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(chosen.markets, chosen.speed, chosen.minutes, Path(folder)))
    publish("outage", QUESTION, CAVEATS, rows)


if __name__ == "__main__":
    main()
