"""What goes wrong in a run, and when: a seed chooses."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

FIRST_S, LAST_S = 0.0, 13 * 60.0
DAY_NS = 86_400 * 10**9


class Fault(NamedTuple):
    """One thing that goes wrong."""

    kind: str
    at_s: float
    for_s: float = 0.0


def _span(sim: Simulation, fault: Fault) -> None:
    sim.world.begin(fault.kind, fault.for_s)


def _span_cut(sim: Simulation, fault: Fault) -> None:
    """Begin with a lost connection, so that there is something to hinder."""
    sim.world.begin(fault.kind, fault.for_s)
    sim.exchange.break_all("reset by peer")


def _broker_span_cut(sim: Simulation, fault: Fault) -> None:
    sim.world.begin(fault.kind, fault.for_s)
    sim.broker.cut_all("reset by peer")


def _count(sim: Simulation, fault: Fault, done: object = True) -> None:
    sim.world.note("fault", kind=fault.kind, for_s=fault.for_s, hit=bool(done))
    sim.world.fired[fault.kind] += bool(done)


def _reset(sim: Simulation, fault: Fault) -> None:
    _count(sim, fault, sim.exchange.break_all("reset by peer"))


def _farewell(sim: Simulation, fault: Fault) -> None:
    _count(sim, fault, sim.exchange.break_all("received 1001 (going away) disconnected"))


def _kill(sim: Simulation, fault: Fault) -> None:
    _count(sim, fault, sim.world.process)
    sim.kill()


def _kill_commit(how: str) -> Callable[[Simulation, Fault], None]:
    def arm(sim: Simulation, fault: Fault) -> None:
        sim.world.note("fault", kind=fault.kind)
        sim.medium.kill_how, sim.medium.kill_in = how, sim.chance.randint(1, 12)

    return arm


def _stop(sim: Simulation, fault: Fault) -> None:
    """SIGSTOP, and SIGCONT after a while."""
    _count(sim, fault, sim.world.process)
    if sim.world.process is not None:
        sim.world.timeline.frozen_until_s = sim.world.now_s + fault.for_s


def _terminate(sim: Simulation, fault: Fault) -> None:
    _count(sim, fault, sim.world.process)
    if sim.world.process is not None:
        sim.world.process.send_signal(signal.SIGTERM)


def _broker_restart(sim: Simulation, fault: Fault) -> None:
    _count(sim, fault)
    sim.broker.restart(fault.for_s, forget=fault.kind == "broker_wipe")


def _broker_reset(sim: Simulation, fault: Fault) -> None:
    _count(sim, fault, sim.broker.cut_all("reset by peer"))


def _takeover(sim: Simulation, fault: Fault) -> None:
    """Another client comes under our name: the broker ends our session."""
    _count(sim, fault, sim.broker.cut_all("session taken over", will=False))


def _step(sign: int) -> Callable[[Simulation, Fault], None]:
    def step(sim: Simulation, fault: Fault) -> None:
        _count(sim, fault)
        sizes_s = (0.5, 30.0, 3600.0, 86_400.0)
        sim.world.wall_offset_ns += sign * int(sim.chance.choice(sizes_s) * 1e9)

    return step


def _nothing(_sim: Simulation, _fault: Fault) -> None:
    """Let a run be undisturbed, and as long as this lasts."""


KINDS: dict[str, tuple[Callable[[Simulation, Fault], None], float, float]] = {
    # what happens, and how long it lasts, seconds
    "none": (_nothing, 0, 0),
    "reset": (_reset, 0, 0),
    "farewell": (_farewell, 0, 0),
    "silence": (_span, 5, 40),
    "drip": (_span, 10, 40),
    "duplicate": (_span, 20, 90),
    "reorder": (_span, 20, 90),
    "gap": (_span, 20, 120),
    "stale": (_span_cut, 60, 60),
    "malformed": (_span, 20, 90),
    "huge": (_span, 20, 60),
    "ws_429": (_span_cut, 2, 30),
    "ws_418": (_span_cut, 2, 30),
    "dns": (_span_cut, 5, 40),
    "tls": (_span_cut, 5, 40),
    "rest_429": (_span_cut, 5, 40),
    "rest_418": (_span_cut, 5, 40),
    "rest_503": (_span_cut, 5, 40),
    "rest_slow": (_span_cut, 10, 45),
    "rest_garbage": (_span_cut, 10, 45),
    "rest_lag": (_span_cut, 10, 60),
    "kill": (_kill, 0, 0),
    "kill_before_commit": (_kill_commit("before"), 0, 0),
    "kill_after_commit": (_kill_commit("after"), 0, 0),
    "kill_torn_commit": (_kill_commit("torn"), 0, 0),
    "sigstop": (_stop, 1, 100),
    "sigterm": (_terminate, 0, 0),
    "exception": (_span, 60, 60),
    "enospc": (_span, 5, 40),
    "eio": (_span, 5, 40),
    "readonly": (_span, 5, 40),
    "slow_fsync": (_span, 10, 60),
    "broker_restart": (_broker_restart, 1, 60),
    "broker_wipe": (_broker_restart, 1, 60),
    "broker_reset": (_broker_reset, 0, 0),
    "broker_silence": (_span, 5, 60),
    "broker_auth": (_broker_span_cut, 2, 30),
    "takeover": (_takeover, 0, 0),
    "ack_stall": (_span, 3, 40),
    "ack_loss": (_span, 5, 60),
    "wall_forward": (_step(1), 0, 0),
    "wall_back": (_step(-1), 0, 0),
}


def schedule(seed: int) -> list[Fault]:
    """Choose what goes wrong in a run; in one of eight it begins before the daemon has taken anything up."""
    chance = random.Random(f"{seed} schedule")
    kinds = chance.sample(sorted(KINDS.keys() - {"none"}), chance.randint(3, 8))
    kinds += chance.choices(kinds, k=chance.randint(0, 3))
    first_s = FIRST_S if chance.random() < 0.125 else 30.0
    faults = []
    for kind in kinds:
        _, least_s, most_s = KINDS[kind]
        at_s = round(chance.uniform(first_s, LAST_S), 3)
        faults.append(Fault(kind, at_s, round(chance.uniform(least_s, most_s), 3)))
    return sorted(faults, key=lambda fault: fault.at_s)


def arm(fault: Fault, sim: Simulation) -> None:
    """Put a fault on the timeline."""
    begin = KINDS[fault.kind][0]
    sim.world.timeline.at(fault.at_s, lambda: begin(sim, fault))
