"""Does the daemon's memory grow at full rate?

Caveats first. A slope over minutes is uncertain, and says so: the figure set beside the limit is the slope's upper end,
two standard errors above it, from the means of equal blocks of time; so a short run misses the limit although nothing
may grow. What grows for a while and then stays (the interpreter's arenas, the first hour's journal in SQLite's cache)
looks like growth in a short run. Two hours tell: `--hours 2`. The exchange invents trades on a clock that runs as ours
does; broker and exchange share the machine. All that a daemon does with ticks is done, closes at full minutes too; REST
and reports of health are left out.

    python -m benchmarks.soak [--hours 0.05] [--markets 500] [--rate 10000]
"""

import argparse
import asyncio
import logging
import multiprocessing
import random
import tempfile
import time
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import numpy as np
import structlog
from websockets.asyncio.server import serve as serve_websockets

from benchmarks.harness import faster, more, publish
from benchmarks.minute import MINUTE_MS, SPEC, Ear, Exchange, broker_of, frame, mark_of, market, take_up, until
from config.schema import Config
from daemon import clock
from daemon.committer import Committer
from daemon.metrics import Metrics
from daemon.mqtt import MqttLink
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.store import Store
from daemon.wires import Wires
from feeds.kinds import kind_of
from inference import artifact as artifacts
from inference.engine import Model
from inference.signals import Rules
from inference.stopwatch import Stopwatch

LIMIT_MB_PER_H = 1.0
TURN_S, SAMPLE_S = 0.05, 1.0
BLOCKS = 12
"""Equal spans of time whose means the slope goes through; the first two are left out as the start."""
STATM = Path("/proc/self/statm")


async def _exchange(pipe: Pipe, last: int, rate: float) -> None:
    exchange, chance = Exchange(), random.Random(0)
    async with serve_websockets(exchange.serve, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        pipe.send(next(iter(server.sockets)).getsockname()[1])
        await asyncio.to_thread(pipe.recv)
        began_s, numbers, told_s, sent = time.monotonic(), dict[str, int](), 0, 0
        while not pipe.poll():
            passed_s = time.monotonic() - began_s
            now_ms = last * MINUTE_MS + int(passed_s * 1e3)
            due, sent = int(passed_s * rate) - sent, int(passed_s * rate)
            marks, told_s = int(passed_s) > told_s, int(passed_s)
            for connection, streams in exchange.names.items():
                natives = [stream.partition("@")[0].upper() for stream in streams[::3]]
                share = due * len(streams) // sum(map(len, exchange.names.values()))
                frames = [trade_of(chance.choice(natives), numbers, now_ms, chance) for _ in range(share)]
                frames += [mark_of(native, now_ms) for native in natives if marks]
                if not connection.transport.is_closing():
                    connection.transport.write(b"".join(frames))
            await asyncio.sleep(TURN_S)
        pipe.send(sent)


def trade_of(native: str, numbers: dict[str, int], now_ms: int, chance: random.Random) -> bytes:
    """Invent a market's next trade."""
    number = numbers[native] = numbers.get(native, 0) + 1
    price = 10_000 + chance.randrange(100)
    return frame(
        f'{{"stream":"{native.lower()}@aggTrade","data":{{"e":"aggTrade","E":{now_ms},"a":{number},"s":"{native}",'
        f'"p":"{price / 100:.2f}","q":"1.000","f":{number},"l":{number},"T":{now_ms},"m":true}}}}'
    )


def exchange_process(pipe: Pipe, last: int, rate: float) -> None:
    """Run the exchange until it is told to stop; it says how many trades it sent."""
    asyncio.run(_exchange(pipe, last, rate))


async def measure(options: argparse.Namespace, model: Model, last: int, pipe: Pipe) -> tuple[np.ndarray, int]:
    """Run for the time asked; return time, s, and resident set, MB, of each sample, and the trades applied."""
    samples: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        config = Config(feeds=[{"exchange": "binance", "symbols": [market(0).symbol]}], store={"path": folder})
        async with broker_of(options.broker, folder) as url:
            store, metrics = Store(folder / "lstmd.sqlite"), Metrics()
            pipeline = Pipeline(model, base_topic="lstmd", watch=Stopwatch(clock.now_ns), journal=store.journal)
            take_up(pipeline, model, options.markets, last)
            publisher = Publisher(
                MqttLink(url, client_id="soak"), store, status_topic="s", online=b"{}", offline=b"{}",
                stamp=lambda: b'"boot_id":"0"', inflight_max=config.mqtt.inflight_max, rng=clock.rng(0),
            )  # fmt: skip
            committer, stop = Committer(config, pipeline, store, publisher, metrics), asyncio.Event()
            kind, ear = kind_of("binance", ws_url=f"ws://127.0.0.1:{pipe.recv()}"), Ear(pipeline, committer)
            wires = Wires(kind, [SPEC], ear, structlog.get_logger(), copies=1)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(committer.run()), group.create_task(committer.live())]
                group.create_task(publisher.run(stop))
                wires.connect(list(pipeline.markets.values()), group)
                await until(lambda: wires.live and publisher.connected, "connecting")
                pipe.send("go")
                began_s = time.monotonic()
                while (passed_s := time.monotonic() - began_s) < options.hours * 3600:
                    samples.append((passed_s, resident_mb()))
                    await asyncio.sleep(SAMPLE_S)
                wires.stop()
                for task in tasks:
                    task.cancel()
                stop.set()
            store.close()
    return np.array(samples), sum(sum(m.counts.values()) for m in pipeline.markets.values())


def resident_mb() -> float:
    """Read the resident set."""
    return int(STATM.read_text().split()[1]) * 4096 / 1e6


def slope(samples: np.ndarray) -> tuple[float, float]:
    """Return MB an hour and its standard error, by the means of blocks after the start."""
    blocks = np.array([block.mean(axis=0) for block in np.array_split(samples, BLOCKS)[2:]])
    hours, held = blocks[:, 0] / 3600, blocks[:, 1]
    centred = hours - hours.mean()
    found = float(centred @ held / (centred @ centred))
    left = held - held.mean() - found * centred
    return found, float(np.sqrt(left @ left / (len(held) - 2) / (centred @ centred)))


def main() -> None:
    """Run, and say how memory went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=0.025)
    parser.add_argument("--markets", type=int, default=500)
    parser.add_argument("--rate", type=float, default=10_000.0, help="trades a second, of all markets together")
    parser.add_argument("--broker", choices=("mosquitto", "embedded"), default="mosquitto")
    parser.add_argument("--folder", type=Path, default=None, help="where the store lies")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    model = Model(artifacts.load(artifacts.resolve("default")), Rules())
    last = 28_000_000 // model.epoch * model.epoch + 200
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=exchange_process, args=(theirs, last, options.rate), daemon=True
    )
    process.start()
    samples, applied = asyncio.run(measure(options, model, last, ours))
    ours.send("stop")
    sent = ours.recv()
    process.join()
    found, error = slope(samples)
    upper = max(found + 2 * error, 1e-3)
    reach = 1.0 if options.hours >= 1 else None
    asked = options.rate * options.hours * 3600
    caveats = [
        f"{options.hours:g} h, {options.markets} markets; {found:.2f} ± {2 * error:.2f} MB/h (two standard errors)",
        f"resident set {samples[0, 1]:.1f} MB at first, {samples[-1, 1]:.1f} MB at last",
    ]
    rows = [
        faster("soak.growth", "growth, upper end of its slope", upper, LIMIT_MB_PER_H, "the limit", "MB/h", reach),
        more("soak.applied", "trades applied", float(applied), float(sent), "the trades sent", ""),
        more("soak.sent", "trades sent", float(sent), asked, "the trades asked for", ""),
    ]
    publish("soak", "Growth of memory at full rate", caveats, rows)


if __name__ == "__main__":
    main()
