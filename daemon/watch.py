"""Follow the topics: a table of markets where there is a terminal, a line per signal where there is none."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from daemon.mqtt import BrokerError, MqttLink, Received

REFRESH_S = 0.25
RETRY_S = 1.0
MARKETS_MAX = 500
"""Rows kept; more markets than a terminal can show are counted only."""
_COLOURS = {"long": "green", "short": "red", "flat": "dim", "online": "green", "offline": "red", "tainted": "yellow"}


class Board:
    """The newest of everything on the topics under `base`."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.status = "unknown"
        self.signals = 0
        self.passed_over = 0
        self._rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._states: dict[tuple[str, str], str] = {}

    @property
    def markets(self) -> set[str]:
        """Slugs of the markets that had a durable signal."""
        return {market for (_, market, _), row in self._rows.items() if "signal" in row}

    def take(self, message: Received) -> str | None:
        """Note a message; return a line to print if it is a new durable one."""
        levels = message.topic.removeprefix(f"{self.base}/").split("/")
        try:
            payload = json.loads(message.payload)
        except ValueError:
            return None
        if not isinstance(payload, dict):
            return None
        if levels == ["status"]:
            self.status = str(payload.get("state"))
        elif len(levels) == 3 and levels[2] == "availability":
            self._states[levels[0], levels[1]] = str(payload.get("state"))
        elif len(levels) == 4:
            return self._take_signal(levels, payload)
        return None

    def _take_signal(self, levels: list[str], payload: dict[str, Any]) -> str | None:
        exchange, market, spec, leaf = levels
        key = (exchange, market, spec)
        if leaf not in {"signal", "last", "live"} or (key not in self._rows and len(self._rows) >= MARKETS_MAX):
            self.passed_over += leaf == "signal"
            return None
        row = self._rows.setdefault(key, {})
        row["live" if leaf == "live" else "signal"] = payload
        if leaf != "signal":
            return None
        self.signals += 1
        return line(market, spec, payload)

    def table(self) -> Table:
        """Draw the state of all markets, within 80 columns."""
        table = Table(
            title=f"{self.base}: {self.status}, {self.signals} signals",
            caption=f"{self.passed_over} signals of further markets not shown" if self.passed_over else None,
            box=None,
            padding=(0, 1, 0, 0),
        )
        for name in ("market", "state", "closed at", "close", "side", "s/f/l %", "edge bps", "now s/f/l"):
            table.add_column(name, justify="right" if name in {"close", "edge bps"} else "left", no_wrap=True)
        for (exchange, market, spec), row in sorted(self._rows.items()):
            state = self._states.get((exchange, market), "?")
            live = row.get("live")
            now = _coloured(live["side"], _shares(live)) if live else ""
            table.add_row(f"{market} {spec}", _coloured(state), *_cells(row.get("signal", {})), now)
        return table


def line(market: str, spec: str, payload: dict[str, Any]) -> str:
    """Write one durable message for people: ``12:01:00 BTC-USDT-PERP 1m seq 28815841 long …``."""
    head = f"{str(payload.get('close_time'))[11:19]} {market:<16} {spec:<4} seq {payload.get('seq')}"
    if payload.get("kind") != "signal":
        return f"{head} {payload.get('kind')}: {', '.join(map(str, payload.get('reasons', [])))}"
    parts = " ".join(f"{name} {payload[f'p_{name}']:.3f}" for name in ("short", "flat", "long"))
    price = payload["reference_price"]
    bps = f"edge {payload['edge_bps']:+.1f} bps move {payload['expected_move_bps']:+.1f} bps"
    return f"{head} {payload['side']:<5} {parts} {bps} at {price:g}"


def _cells(signal_: dict[str, Any]) -> list[str]:
    closed_at, kind = str(signal_.get("close_time", ""))[11:19], str(signal_.get("kind", ""))
    if kind != "signal":
        return [closed_at, "", kind, "", ""]
    side, edge = signal_["side"], f"{signal_['edge_bps']:+.1f}"
    return [closed_at, f"{signal_['reference_price']:g}", _coloured(side), _shares(signal_), edge]


def _shares(payload: dict[str, Any]) -> str:
    return "/".join(f"{100 * payload[f'p_{side}']:.0f}" for side in ("short", "flat", "long"))


def _coloured(word: str, text: str | None = None) -> str:
    colour = _COLOURS.get(word)
    return f"[{colour}]{text or word}[/]" if colour else text or word


def stop_event(seconds: float | None = None) -> asyncio.Event:
    """Return an event that Ctrl-C, SIGTERM or the end of `seconds` sets."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if seconds is not None:
        loop.call_later(seconds, stop.set)
    return stop


async def messages(link: MqttLink, base: str, console: Console) -> AsyncIterator[Received]:
    """Yield what comes under `base`, for ever, subscribing again after each loss; one line per outage.

    Raises:
        BrokerRefused: the broker does not let us in.

    """
    lost = False
    while True:
        try:
            async with link.follow(f"{base}/#") as received:
                if lost:
                    console.print("connected again", style="dim")
                lost = False
                async for message in received:
                    yield message
        except BrokerError as error:
            if not lost:
                console.print(f"no broker: {error}; trying again", style="dim", highlight=False)
            lost = True
            await asyncio.sleep(RETRY_S)


async def show(link: MqttLink, board: Board, *, console: Console, stop: asyncio.Event) -> None:
    """Keep a table on the terminal, or print a line per signal, until `stop`."""
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(_read(link, board, console), name="watch-read")
        if console.is_terminal:
            with Live(board.table(), console=console, auto_refresh=False) as live:
                while not stop.is_set():
                    live.update(board.table(), refresh=True)
                    await _pause(stop)
        await stop.wait()
        reader.cancel()


async def dump(link: MqttLink, base: str, *, console: Console, stop: asyncio.Event) -> None:
    """Print every message as a JSON line until `stop`."""
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(_dump(link, base, console), name="watch-dump")
        await stop.wait()
        reader.cancel()


async def _read(link: MqttLink, board: Board, console: Console) -> None:
    async for message in messages(link, board.base, console):
        text = board.take(message)
        if text is not None and not console.is_terminal:
            console.print(text, highlight=False, soft_wrap=True)


async def _dump(link: MqttLink, base: str, console: Console) -> None:
    errors = Console(stderr=True)
    async for message in messages(link, base, errors):
        try:
            payload = json.loads(message.payload)
        except ValueError:
            payload = None
        text = json.dumps({"topic": message.topic, "retained": message.retained, "payload": payload})
        console.print(text, highlight=False, soft_wrap=True, markup=False)


async def _pause(stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), REFRESH_S)
    except TimeoutError:
        return
