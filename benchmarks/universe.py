"""How long does a whole exchange take: until all its streams are confirmed, and until every market's model is warm?

python -m benchmarks.universe [--exchange binance] [--markets 500]
"""

import argparse
import asyncio
import logging
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import structlog

from benchmarks import harness
from config.schema import Config, Feed
from daemon import clock
from daemon.committer import Committer
from daemon.desk import Desk
from daemon.health import Reporter
from daemon.metrics import Metrics
from daemon.mqtt import MqttLink, Will
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.store import Store
from feeds.emulator import Emulator
from feeds.emulator.dialects.binance_rest import USED_HEADER, WEIGHT_MAX
from feeds.emulator.synthetic import synthetic_tape
from feeds.emulator.tape import MINUTE_MS
from inference import artifact
from inference.engine import Model
from inference.signals import Rules

QUESTION = "How long does a whole exchange take?"
CAVEATS = [
    "the emulated exchange is a process of its own on the same two cores, and so is whatever else runs there",
    "neither the interpreter's start-up nor the kernels' compilation is in the times; there is no broker",
    "what is committed goes to a store on the disk, and what would be retained is made",
    "the exchange counts weight by the minutes of its clock as Binance does and refuses what is too much",
    "other exchanges' limits are kept, but not enforced, and have no row",
    "the least time for the warm-ups is that of their weight: so many minutes must be over",
]
STREAMS_S = 10.0
"""By when all streams are to be confirmed."""
BEGIN_MS = 1_736_121_600_000
HISTORY_MS = 36 * 3_600_000 - 600_000
"""Ten minutes before an epoch ends, so that a fold asks for nearly as many candles as ever."""
NAMES = {"bingx": "C{:04}-USDT"}
POLL_S = 0.05


def serve(exchange: str, markets: int, pipe: Connection) -> None:
    """Run the exchange until it is told to stop; send its port at first, and what it was asked at last."""
    asyncio.run(_serve(exchange, markets, pipe))


async def _serve(exchange: str, markets: int, pipe: Connection) -> None:
    natives = [NAMES.get(exchange, "C{:04}USDT").format(n) for n in range(markets)]
    tapes = {native: synthetic_tape(native, seed=1, begin_ms=BEGIN_MS) for native in natives}
    start_ms = BEGIN_MS + HISTORY_MS
    for tape in tapes.values():
        tape.price_at(start_ms)  # invent the past now: it is not what is measured
    emulator = Emulator(tapes, exchange=exchange, start_ns=start_ms * 1_000_000)
    pipe.send(await emulator.start())
    used = dict[int, int]()
    while not pipe.poll():
        await asyncio.sleep(POLL_S)
        if USED_HEADER in emulator.venue.headers:
            used[emulator.venue.clock.now_ms() // MINUTE_MS] = int(emulator.venue.headers[USED_HEADER])
    await emulator.stop()
    pipe.send((dict(emulator.venue.requests), used))


async def measure(exchange: str, markets: int, port: int, folder: Path) -> dict[str, float]:
    """Take a feed up; return after how many seconds what was true, and what processor time it took."""
    url = f"127.0.0.1:{port}"
    feed = Feed(exchange=exchange, symbols=("all",), ws_url=f"ws://{url}", rest_url=f"http://{url}")
    model = Model(artifact.load(artifact.resolve("default")), Rules())
    store, metrics, pipeline = Store(folder / "lstmd.sqlite"), Metrics(), Pipeline(model, base_topic="lstmd")
    config = Config(feeds=[feed])
    desk = Desk(0, feed, pipeline, store, metrics, lambda: committer.moved())  # noqa: PLW0108 (made below)
    link = MqttLink("mqtt://127.0.0.1:9", client_id="x", will=Will("x", b""))
    publisher = Publisher(
        link, store, status_topic="x", online=b"", offline=b"", stamp=bytes, inflight_max=1, rng=clock.rng(0)
    )
    committer = Committer(config, pipeline, store, publisher, metrics)
    reporter = Reporter(config, model, [desk], store, publisher, metrics, "boot")
    stop, began_s, cpu_s, after_s = asyncio.Event(), time.perf_counter(), time.process_time(), dict[str, float]()

    async def say(what: str, true: Callable[[], bool]) -> None:
        while not true():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(POLL_S)
        after_s[what] = time.perf_counter() - began_s
        print(f"{after_s[what]:8.2f} s  {what}", flush=True)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(task) for task in (committer.run(), desk.run(stop), reporter.run())]
        await say("confirmed", lambda: desk.live)
        await say("taken up", desk.settled.is_set)
        for part in (1, 4, 10):
            ready = markets * part // 10
            left = markets - ready
            await say(f"{ready} warm", lambda left=left: desk.settled.is_set() and desk.waiting <= left)  # type: ignore[misc]
        after_s["processor"] = time.process_time() - cpu_s
        for task in tasks:
            task.cancel()
    store.close()
    return after_s


def rows(markets: int, after_s: dict[str, float], used: dict[int, int]) -> list[harness.Row]:
    """Set what was measured beside what was asked for; `used` is the weight by minute, where the exchange says it."""
    named, warm_s = f"{markets} markets", after_s[f"{markets} warm"]
    found = [
        harness.faster(
            "universe.confirmed", f"{named} confirmed", after_s["confirmed"], STREAMS_S, "the time allowed", "s", 1.0
        ),
        harness.faster(
            "universe.processor", f"{named} warm, one core", after_s["processor"], warm_s, "the time it took", "s"
        ),
    ]
    if used:
        found.append(
            harness.faster(
                "universe.weight", "weight in a minute", max(used.values()), WEIGHT_MAX, "the limit", "", 1.0
            )
        )
    if least_s := 60.0 * ((sum(used.values()) - 1) // WEIGHT_MAX):
        found.append(harness.faster("universe.warm", f"{named} warm", warm_s, least_s, "the least by weight", "s", 0.9))
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--exchange", default="binance")
    options.add_argument("--markets", type=int, default=500)
    chosen = options.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(chosen.exchange, chosen.markets, theirs), daemon=True
    )
    process.start()
    with tempfile.TemporaryDirectory() as folder:
        after_s = asyncio.run(measure(chosen.exchange, chosen.markets, ours.recv(), Path(folder)))
    ours.send("stop")
    requests, used = ours.recv()
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MB peak resident set")
    for path, count in sorted(requests.items()):
        print(f"{count:8d}  {path}")
    harness.publish("universe", QUESTION, CAVEATS, rows(chosen.markets, after_s, used))


if __name__ == "__main__":
    main()
