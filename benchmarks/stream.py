"""How many ticks a second does one core take from a real socket without falling behind?

python -m benchmarks.stream [--ticks 150000] [--markets 20] [--rounds 3]
"""

import argparse
import statistics

from benchmarks import harness, models
from benchmarks.loopback import Ours, Plan, Told, apart, consume, exchange

QUESTION = "How many ticks a second does one core take from a real socket without falling behind?"
CAVEATS = [
    (
        "recorded trades of Binance, re-timed and dealt out to 20 markets, from another process over one loopback "
        "websocket, as fast as the reader takes them: what it takes then is what it sustains"
    ),
    (
        "the daemon's own chain: websocket, decoder, order, candles, store, provisional signals every 250 ms (as "
        "shipped) or after every turn of the event loop; a market's ticks that are superseded within a turn reach "
        "its candle, not the model; no broker"
    ),
    "a second is one of our CPU time; the sender has the other core",
]
WANTED = 50_000.0


def rates(plan: Plan, rounds: int, cases: dict[str, tuple[str, int, str]]) -> dict[str, list[Told]]:
    """Let the cases take turns; a case is a model's size, a pause between signals, and an event loop."""
    told: dict[str, list[Told]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (size, pause_ms, loop) in cases.items():
            with exchange(plan) as port:
                told[name].append(apart(consume, Ours(port, plan, size, pause_ms, loop=loop)))
    return told


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ticks", type=int, default=150_000)
    options.add_argument("--markets", type=int, default=20)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    plan = Plan(chosen.ticks, chosen.markets, WANTED, paced=False)
    told = rates(plan, chosen.rounds, {
        "250 ms": (models.SHIPPED, 250, "asyncio"), "no": (models.SHIPPED, 0, "asyncio"),
        "uvloop": (models.SHIPPED, 250, "uvloop"),
    })  # fmt: skip
    a_second = {name: statistics.median(t.ticks / t.cpu_s for t in of) for name, of in told.items()}
    harness.publish("stream", QUESTION, CAVEATS, [
        harness.more("stream.shipped", "shipped model, 250 ms between signals", a_second["250 ms"], WANTED, "wanted",
                     "/s", 1.0),
        harness.more("stream.unthrottled", "shipped model, signals every turn", a_second["no"], WANTED, "wanted", "/s"),
        harness.more("stream.uvloop", "asyncio's loop, 250 ms", a_second["250 ms"], a_second["uvloop"], "uvloop", "/s"),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
