"""How long does a cold start take, until every market is ready to say its next signal?

Caveats first. The store is filled beforehand with what a stopped daemon leaves behind: of each market the candles of a
fold in the middle of an epoch, and the states of its last snapshots. The start is a new process: interpreter, imports,
artifact, kernels from their cache (compiled by a run before), the store opened and checked, all lines taken up. What an
exchange is asked for meanwhile is not counted: it is the history that is there already. The file is likely in the
kernel's cache. `snapshot` is a stop of which the disk knew half a snapshot's distance; `journal` the same without any.

    python -m benchmarks.startup [--markets 500] [--rounds 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import faster, publish

LIMIT_S = 5.0
NOW = "now"


def child(path: Path, markets: int, began_ns: int, *, with_snapshots: bool) -> dict[str, float]:
    """Start as the daemon does; return the seconds after which each part was done, from the process's begin on."""
    from benchmarks.minute import SPEC, market
    from daemon import app, clock
    from daemon.pipeline import Pipeline
    from daemon.store import Store
    from daemon.uptake import Uptake
    from feeds.exchanges.binance import BinanceCodec
    from inference import artifact as artifacts
    from inference.engine import Model, Phase
    from inference.signals import Rules

    def since_s() -> float:
        return (time.monotonic_ns() - began_ns) / 1e9

    done = {"imports": since_s()}
    assert app.run is not None
    model = Model(artifacts.load(artifacts.resolve("default")), Rules())
    done["model"] = since_s()
    with Store(path) as store:
        done["store"] = since_s()
        pipeline = Pipeline(model, base_topic="lstmd", journal=store.journal)
        uptake = Uptake(None, store, None, taken=lambda _: None)  # type: ignore[arg-type]  # nothing is to be fetched
        for number in range(markets):
            one = pipeline.add(market(number), BinanceCodec.traits)
            line = one.add(SPEC, model, has_kline=True, by_exchange=False)
            one.settle_funding([], clock.now_ns())
            stream_seq = store.stream_seq(line.name)
            assert stream_seq is not None
            if not with_snapshots:
                line.engine.policy += "x"
            uptake._begin(line, stream_seq * SPEC.interval_ns)
            assert line.engine.phase is Phase.READY, line.engine.phase
        done["ready"] = since_s()
    assert "torch" not in sys.modules
    return done


def start(path: Path, markets: int, *, with_snapshots: bool) -> dict[str, float]:
    """Start once, in a process of its own."""
    order = [sys.executable, "-m", "benchmarks.startup", "--child", str(path), "--markets", str(markets)]
    command = [*order, "--began", str(time.monotonic_ns()), *([] if with_snapshots else ["--journal"])]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(told)
    return found


def fill(path: Path, markets: int) -> None:
    """Leave behind what a stopped daemon would."""
    from benchmarks.minute import SPEC, history, market
    from daemon.line import Snapshot
    from daemon.pipeline import Pipeline
    from daemon.store import LineCommit, Message, Store
    from feeds.exchanges.binance import BinanceCodec
    from inference import artifact as artifacts
    from inference.engine import Model
    from inference.signals import Rules

    model = Model(artifacts.load(artifacts.resolve("default")), Rules())
    last = 28_000_000 // model.epoch * model.epoch + model.epoch // 2
    rows, _ = history(model, last)
    early, state = history(model, last - 32)
    pipeline = Pipeline(model, base_topic="lstmd")
    with Store(path) as store:
        for number in range(markets):
            line = pipeline.add(market(number), BinanceCodec.traits).add(SPEC, model, has_kline=True, by_exchange=False)
            kept = Snapshot(early[-1].seq, state.state)
            message = Message(last, line.topic, last * SPEC.interval_ns, b'{"kind":"signal"}', b"{}")
            before, after = rows[: len(early)], rows[len(early) :]
            store.commit(
                [
                    LineCommit(line.name, before, kept, line.model_key, []),
                    LineCommit(line.name, after, None, line.model_key, [message]),
                ]
            )


def main() -> None:
    """Start some times from each, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markets", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--journal", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.markets, options.began, with_snapshots=not options.journal)))
        return
    kinds = {"snapshot": True, "journal": False}
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lstmd.sqlite"
        fill(path, options.markets)
        for _ in range(options.rounds):
            for kind, with_snapshots in kinds.items():
                found[kind].append(start(path, options.markets, with_snapshots=with_snapshots))
    rows = []
    for kind, told in found.items():
        parts = {part: statistics.median(one[part] for one in told) for part in told[0]}
        for part, seconds in parts.items():
            reach = 1.0 if (kind, part) == ("snapshot", "ready") else None
            what = f"{options.markets} markets from {kind}, until {part}"
            rows.append(faster(f"startup.{kind}.{part}", what, seconds, LIMIT_S, "the limit", "s", reach))
    caveats = ["a new process, kernels cached; from its begin, the exchange's answers not counted"]
    publish("startup", "Cold start until every market is ready", caveats, rows)


if __name__ == "__main__":
    main()
