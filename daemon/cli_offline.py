"""Commands on tapes, candles and models, where `cli` holds those of the running daemon."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli_shared import AsJson, ConfigPath, fail, load_config, print_json, print_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feeds.capture import Frame
    from feeds.emulator.server import Emulator
    from feeds.exchanges.base import Codec
    from feeds.market import CandleSpec
    from training.folder import Entry

app = typer.Typer()


@app.command()
def emulate(
    tape: Annotated[
        list[str],
        typer.Option(
            help="SYMBOL=SOURCE, any number: `synthetic`, a trades file, a capture, or a parquet file of candles."
        ),
    ] = ["BTCUSDT=synthetic", "ETHUSDT=synthetic", "SOLUSDT=synthetic"],  # noqa: B006 (typer copies it)
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 9000,
    speed: Annotated[float, typer.Option(min=0.01, max=10_000, help="Exchange seconds per second.")] = 1.0,
    history_h: Annotated[
        float, typer.Option("--history-h", min=0, help="Hours of the tape that have passed at the beginning.")
    ] = 24.0,
    begin: Annotated[str, typer.Option(help="Day on which synthetic tapes begin, UTC.")] = "2025-01-06",
    seed: Annotated[int, typer.Option(help="Seed of the synthetic tapes.")] = 7,
) -> None:
    """Be a Binance USDⓈ-M exchange on loopback: websocket and REST over tapes, on a clock that begins at the first
    subscription.
    """  # noqa: D205
    import asyncio

    from daemon.watch import stop_event
    from feeds.emulator.server import serve

    emulator = _emulator(tape, begin=begin, seed=seed, history_h=history_h, speed=speed)

    def ready(bound: int) -> None:
        typer.echo(f'listening: ws_url = "ws://{host}:{bound}", rest_url = "http://{host}:{bound}"')

    async def main() -> None:
        await serve(emulator, stop_event(), host=host, port=port, ready=ready)

    try:
        asyncio.run(main())
    except OSError as error:
        fail(f"--port {port}: {error.strerror}")


def _emulator(tapes: list[str], *, begin: str, seed: int, history_h: float, speed: float) -> "Emulator":
    from feeds.emulator.server import Emulator
    from feeds.emulator.sources import tape_from

    begin_ns = _instant_ns(begin, "--begin")
    made = {}
    for at, text in enumerate(tapes):
        native, split, source = text.partition("=")
        if not split:
            raise typer.BadParameter(f"{text!r} is not SYMBOL=SOURCE", param_hint="--tape")
        try:
            made[native.upper()] = tape_from(source, native.upper(), seed=seed + at, begin_ns=begin_ns)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{source}: {error}", param_hint="--tape") from None
    start_ms = max(one.begin_ms for one in made.values()) + round(history_h * 3_600_000)
    return Emulator(made, start_ns=start_ms * 1_000_000, speed=speed)


@app.command()
def record(
    out: Annotated[Path, typer.Argument(help="File to write, gzip: frames.gz.")],
    symbol: Annotated[list[str], typer.Option(help="ccxt unified symbol, any number.")],
    candles: Annotated[list[str] | None, typer.Option(help="Candle spec whose klines to record, any number.")] = None,
    exchange: Annotated[str, typer.Option(help="Exchange.")] = "binance",
    ws_url: Annotated[str | None, typer.Option(help="Websocket address instead of the exchange's.")] = None,
    rest_url: Annotated[str | None, typer.Option(help="REST address instead of the exchange's.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after so many. Default: at Ctrl-C.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record an exchange's frames as they come, for `replay` and `emulate`."""
    import asyncio

    from daemon import log_setup
    from daemon.record import record as run_record
    from daemon.watch import stop_event
    from feeds.errors import RemoteError

    codec_of(exchange)
    specs = specs_of(candles or ["1m"])
    log_setup.configure(format="console" if sys.stderr.isatty() else "json")

    async def main() -> int:
        stop = stop_event(seconds)
        return await run_record(
            out, exchange=exchange, symbols=symbol, specs=specs, ws_url=ws_url, rest_url=rest_url, stop=stop
        )

    try:
        frames = asyncio.run(main())
    except (RemoteError, OSError) as error:
        fail(str(error))
    if as_json:
        print_json({"file": str(out), "frames": frames})
    else:
        typer.echo(f"{frames} frames in {out}")


@app.command()
def replay(
    tape: Annotated[Path, typer.Argument(help="A recording, a capture (hftbacktest, cryptofeed) or an aggTrades zip.")],
    symbol: Annotated[list[str], typer.Option(help="ccxt unified symbol, any number; the first names a zip's market.")],
    candles: Annotated[list[str] | None, typer.Option(help="Candle spec, any number. Default: 1m.")] = None,
    exchange: Annotated[str, typer.Option(help="Exchange whose frames the tape holds.")] = "binance",
    kind: Annotated[str, typer.Option(help="What to print: signal, candle or all.")] = "signal",
    out: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
    config: ConfigPath = None,
) -> None:
    """Run a tape through the daemon's pipeline; print what it would have published as JSON lines, without a broker.

    Base topic, artifact and costs come from the configuration.
    """
    from daemon import check
    from daemon.app import rules_of
    from daemon.replay import Replay, TapeError
    from inference.engine import Model

    if kind not in {"signal", "candle", "all"}:
        raise typer.BadParameter(f"{kind!r} is not signal, candle or all", param_hint="--kind")
    settings = load_config(config)
    artifact = check.check(settings)
    specs = specs_of(candles or ["1m"])
    strange = [spec.text for spec in specs if spec.text not in artifact.manifest.specs]
    if strange and kind != "candle":
        served = ", ".join(artifact.manifest.specs)
        message = f"the artifact serves {served}, not {', '.join(strange)}; --kind candle gives candles of any spec"
        raise typer.BadParameter(message, param_hint="--candles")
    try:
        native = codec_of(exchange).native_of(symbol[0])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--symbol") from None
    try:
        player = Replay(
            Model(artifact, rules_of(settings, artifact.manifest)),
            exchange=exchange,
            symbols=symbol,
            specs=specs,
            base_topic=settings.mqtt.base_topic,
        )
        with out.open("wb") if out else contextlib.nullcontext(sys.stdout.buffer) as sink:
            for output in player.run(_frames(tape, native)):
                if kind in {"all", output.kind}:
                    sink.write(b'{"topic":"%s","payload":%s}\n' % (output.topic.encode(), output.payload))
    except (TapeError, OSError) as error:
        fail(str(error))


def _frames(tape: Path, native: str) -> "Iterator[Frame]":
    from daemon.replay import TapeError
    from feeds.capture import tape_frames

    try:
        yield from tape_frames(tape, native)
    except (OSError, ValueError) as error:
        raise TapeError(str(error)) from error


def codec_of(exchange: str) -> "type[Codec]":
    """Return the codec of an exchange; a usage fault where there is none."""
    from feeds.exchanges import CODECS

    if exchange not in CODECS:
        raise typer.BadParameter(f"{exchange!r} is not one of {', '.join(sorted(CODECS))}", param_hint="--exchange")
    return CODECS[exchange]


def specs_of(texts: list[str]) -> "list[CandleSpec]":
    """Read candle specs; a usage fault where one is none."""
    from feeds.market import CandleSpec

    try:
        return [CandleSpec.parse(text) for text in texts]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--candles") from None


@app.command()
def history(
    symbol: Annotated[list[str], typer.Option(help="ccxt unified symbol, any number.")],
    since: Annotated[str, typer.Option(help="First moment wanted, UTC: 2026-01-01 or 2026-01-01T12:00.")],
    out: Annotated[Path, typer.Option(help="Folder to write to, or to go on with.")],
    candles: Annotated[list[str] | None, typer.Option(help="Candle spec, any number. Default: 1m.")] = None,
    until: Annotated[
        str | None, typer.Option(help="Exclusive end, UTC. Default: the newest candle that is final.")
    ] = None,
    exchange: Annotated[str, typer.Option(help="Exchange.")] = "binance",
    rest_url: Annotated[str | None, typer.Option(help="REST address instead of the exchange's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch candles, mark-price candles and settled funding into a folder of parquet files with a manifest.

    The same command goes on with what was broken off, and adds what is new to what is complete.
    """
    import asyncio

    import msgspec

    from daemon import clock
    from feeds.errors import RemoteError
    from feeds.history import open_history
    from training.download import download
    from training.folder import FolderError

    specs = specs_of(candles or ["1m"])
    since_ns = _instant_ns(since, "--since")
    until_ns = None if until is None else _instant_ns(until, "--until")
    if until_ns is not None and until_ns <= since_ns:
        raise typer.BadParameter("lies before --since", param_hint="--until")

    async def main() -> "list[Entry]":
        source = open_history(exchange, rest_url)
        try:
            return await download(
                source, out, symbols=symbol, specs=specs, since_ns=since_ns, until_ns=until_ns, rng=clock.rng(),
                progress=sys.stderr.isatty(),
            )  # fmt: skip
        finally:
            await source.aclose()

    try:
        entries = asyncio.run(main())
    except (RemoteError, FolderError, OSError) as error:
        fail(str(error))
    if as_json:
        print_json({"folder": str(out), "files": msgspec.to_builtins(entries)})
        return
    for entry in entries:
        lacking = f", {sum(gap.candles for gap in entry.gaps)} candles lacking" if entry.gaps else ""
        typer.echo(f"{out / entry.name}: {entry.rows} rows, {entry.begin} to {entry.end}{lacking}")


def _instant_ns(text: str, option: str) -> int:
    import datetime as dt

    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a day such as 2025-01-06", param_hint=option) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1) * 1000


@app.command()
def train(
    candles: Annotated[
        list[Path], typer.Option("--candles", help="Parquet file, or folder of `history`; more may follow.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the artifact to write.")] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further files of candles.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML recipe. Default: the shipped artifact's.")] = None,
    device: Annotated[
        str, typer.Option(help="`cpu`, `cuda` or `auto`. Only the CPU gives the same artifact each time.")
    ] = "auto",
    check_leaks: Annotated[
        bool,
        typer.Option("--check-leaks", help="First plant a leak and find it, and none in the features as they are."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit an artifact on candles and write it with its measured parity and its report card.

    --check-leaks without --out fits nothing.
    """
    from training import recipe as recipes
    from training.dataset import CandlesError, candle_files
    from training.fit import DeviceError
    from training.fit import train as fit

    files = candle_files([*candles, *(more or [])])
    if check_leaks:
        _check_leaks(files, as_json=as_json and out is None)
    if out is None:
        if check_leaks:
            return
        raise typer.BadParameter("is needed, unless --check-leaks is all there is to do", param_hint="--out")
    try:
        chosen = recipes.load(recipe or recipes.DEFAULT)
        summary = fit(files, out, chosen, device=device, progress=sys.stderr.isatty())
    except DeviceError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None
    except (CandlesError, recipes.RecipeError) as error:
        fail(str(error))
    if as_json:
        print_json({"folder": str(summary.folder), "model": summary.model_id, "report": summary.report})
        return
    typer.echo(f"{summary.model_id} in {summary.folder}")
    print_tree(summary.report)


def _check_leaks(files: list[Path], *, as_json: bool) -> None:
    """Report on each file; end with 1 where a leak is found, or a planted one is not."""
    from training import leaks
    from training.dataset import CandlesError

    try:
        found = list(leaks.survey(files))
    except CandlesError as error:
        fail(str(error))
    if as_json:
        print_json(
            [
                {"file": f.name, "sound": f.sound} | {k: getattr(f, k)._asdict() for k in ("real", "planted")}
                for f in found
            ]
        )
    else:
        for one in found:
            verdict = (
                "no leak, and the planted one is found" if one.sound else f"real {one.real}, planted {one.planted}"
            )
            typer.echo(f"{one.name}: {verdict}", err=True)
    if bad := [one.name for one in found if not one.sound]:
        fail(f"leaks: {', '.join(bad)}")


@app.command()
def calibrate(
    candles: Annotated[
        list[Path],
        typer.Option("--candles", help="Parquet file, or folder of `history`, to pool; more may follow."),
    ],
    day: Annotated[str, typer.Option(help="UTC day for which the revision is in force: 2026-01-10.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further files of candles.")] = None,
    artifact: Annotated[str, typer.Option(help="`default` or a folder.")] = "default",
    out: Annotated[Path | None, typer.Option(help="File to write the revision to, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Revise an artifact's calibration for one UTC day by what became of its forecasts in the seven days before.

    Candles that close after the day has begun are not looked at. With less history the revision stays nearer to the
    artifact's own calibration; candles of 256 more intervals before the first day fill the state.
    """
    import datetime as dt

    import msgspec

    from inference import artifact as artifacts
    from training.dataset import CandlesError, candle_files
    from training.online import calibrate as revise

    try:
        moment = dt.date.fromisoformat(day)
    except ValueError:
        raise typer.BadParameter(f"{day!r} is not a day such as 2026-01-10", param_hint="--day") from None
    try:
        revision = revise(candle_files([*candles, *(more or [])]), artifacts.resolve(artifact), moment)
    except CandlesError as error:
        fail(str(error))
    if out:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(revision)) + b"\n")
    if as_json:
        print_json(msgspec.to_builtins(revision))
    else:
        print_tree(msgspec.to_builtins(revision))


@app.command()
def evaluate(
    candles: Annotated[
        list[Path],
        typer.Option("--candles", help="Parquet file, or folder of `history`, to score; more may follow."),
    ],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further files of candles.")] = None,
    artifact: Annotated[str, typer.Option(help="`default` or a folder.")] = "default",
    train: Annotated[list[Path] | None, typer.Option(help="Candles that teach the baselines, any number.")] = None,
    since: Annotated[str | None, typer.Option(help="Score from this UTC day on.")] = None,
    funding: Annotated[
        list[Path] | None, typer.Option(help="Parquet file of settled funding, named after its market; any number.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score an artifact on candles, beside baselines on the very same rows."""
    import datetime as dt

    from inference import artifact as artifacts
    from training import evaluate as evaluation
    from training.dataset import CandlesError, candle_files

    try:
        day = dt.date.fromisoformat(since) if since else None
    except ValueError:
        raise typer.BadParameter(f"{since!r} is not a day such as 2025-01-06", param_hint="--since") from None
    try:
        scored = evaluation.assess(
            candle_files([*candles, *(more or [])]),
            artifacts.resolve(artifact),
            train=train,
            since=day,
            funding=funding,
        )
    except CandlesError as error:
        fail(str(error))
    if html:
        from training.report import page

        html.write_text(page(scored), encoding="utf-8")
    if as_json:
        print_json(scored.result)
        return
    print_tree(scored.result)
