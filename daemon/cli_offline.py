"""Commands on tapes, candles and models, where `cli` holds those of the running daemon."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli_shared import AsJson, ConfigPath, fail, load_config, print_json, print_tree

if TYPE_CHECKING:
    from feeds.emulator.tape import Tape
    from feeds.exchanges.base import Codec
    from feeds.market import CandleSpec
    from inference.revisions import Revision
    from training.folder import Entry

app = typer.Typer()


def _proxy(text: str | None) -> str | None:
    from config.schema import proxy_address

    try:
        return text and proxy_address(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Proxy = Annotated[
    str | None,
    typer.Option(
        envvar="LSTMD_PROXY", callback=_proxy, help="http://, socks5:// or socks5h://[user:password@]host:port."
    ),
]


@app.command()
def emulate(
    tape: Annotated[
        list[str] | None,
        typer.Option(
            help="SYMBOL=SOURCE, any number: `synthetic`, a trades file, a capture, or a parquet file of candles; the "
            "symbol is the exchange's own. Default: a few synthetic markets."
        ),
    ] = None,
    exchange: Annotated[str, typer.Option(help="Exchange to be.")] = "binance",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 9000,
    speed: Annotated[float, typer.Option(min=0.01, max=10_000, help="Exchange seconds per second.")] = 1.0,
    history_h: Annotated[
        float, typer.Option("--history-h", min=0, help="Hours of the tape that have passed at the beginning.")
    ] = 24.0,
    begin: Annotated[str, typer.Option(help="Day on which synthetic tapes begin, UTC.")] = "2025-01-06",
    seed: Annotated[int, typer.Option(help="Seed of the synthetic tapes.")] = 7,
) -> None:
    """Be an exchange on loopback: websocket and REST over tapes, on a clock that begins at the first subscription."""
    import asyncio

    from daemon.watch import stop_event
    from feeds.emulator.dialects import DIALECTS
    from feeds.emulator.server import Emulator, serve

    if exchange not in DIALECTS:
        raise typer.BadParameter(f"{exchange!r} is not one of {', '.join(sorted(DIALECTS))}", param_hint="--exchange")
    tapes = _tapes(tape or [f"{native}=synthetic" for native in DIALECTS[exchange].natives], begin=begin, seed=seed)
    start_ms = max(one.begin_ms for one in tapes.values()) + round(history_h * 3_600_000)
    emulator = Emulator(tapes, exchange=exchange, start_ns=start_ms * 1_000_000, speed=speed)

    def ready(bound: int) -> None:
        typer.echo(f'{exchange} listening: ws_url = "ws://{host}:{bound}", rest_url = "http://{host}:{bound}"')

    async def main() -> None:
        await serve(emulator, stop_event(), host=host, port=port, ready=ready)

    try:
        asyncio.run(main())
    except OSError as error:
        fail(f"--port {port}: {error.strerror}")


def _tapes(texts: list[str], *, begin: str, seed: int) -> "dict[str, Tape]":
    from feeds.emulator.sources import tape_from

    begin_ns = _instant_ns(begin, "--begin")
    made = {}
    for at, text in enumerate(texts):
        native, split, source = text.partition("=")
        if not split:
            raise typer.BadParameter(f"{text!r} is not SYMBOL=SOURCE", param_hint="--tape")
        try:
            made[native.upper()] = tape_from(source, native.upper(), seed=seed + at, begin_ns=begin_ns)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{source}: {error}", param_hint="--tape") from None
    return made


@app.command()
def record(
    folder: Annotated[Path, typer.Argument(help="Folder to write to: a new file each hour, and each 256 MiB.")],
    symbol: Annotated[list[str], typer.Option(help="ccxt unified symbol, any number.")],
    candles: Annotated[
        list[str] | None, typer.Option(help="Candle spec whose klines to record, any number. Default: 1m.")
    ] = None,
    max_gib: Annotated[
        float, typer.Option(min=0.001, help="Size of the exchange's recordings in the folder; beyond, the oldest go.")
    ] = 10.0,
    exchange: Annotated[str, typer.Option(help="Exchange.")] = "binance",
    ws_url: Annotated[str | None, typer.Option(help="Websocket address instead of the exchange's.")] = None,
    rest_url: Annotated[str | None, typer.Option(help="REST address instead of the exchange's.")] = None,
    proxy: Proxy = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after so many. Default: at Ctrl-C.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record an exchange's frames as they come, and what funding it settles, for `replay` and `emulate`."""
    import asyncio

    from daemon import log_setup
    from daemon.record import Written
    from daemon.record import record as run_record
    from daemon.watch import stop_event
    from feeds.errors import RemoteError

    codec_of(exchange)
    specs = specs_of(candles or ["1m"])
    log_setup.configure(format="console" if sys.stderr.isatty() else "json")

    async def main() -> Written:
        return await run_record(
            folder, exchange=exchange, symbols=symbol, specs=specs, max_bytes=round(max_gib * 2**30), ws_url=ws_url,
            rest_url=rest_url, proxy=proxy, stop=stop_event(seconds),
        )  # fmt: skip

    try:
        written = asyncio.run(main())
    except (RemoteError, OSError) as error:
        fail(str(error))
    if as_json:
        print_json({"folder": str(folder), **written._asdict()})
    else:
        typer.echo(f"{written.entries} entries in {written.files} files, {written.bytes} bytes, in {folder}")


@app.command()
def replay(
    tape: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Recordings: files, folders of them, globs. Or tapes of other kinds: aggTrades zips, captures of "
            "hftbacktest or cryptofeed.",
        ),
    ],
    symbol: Annotated[
        list[str] | None,
        typer.Option(help="ccxt unified symbol, any number; the first names a zip's market. Default: a recording's."),
    ] = None,
    candles: Annotated[
        list[str] | None, typer.Option(help="Candle spec, any number. Default: a recording's, else 1m.")
    ] = None,
    exchange: Annotated[
        str | None, typer.Option(help="Exchange whose frames the tape holds. Default: a recording's, else binance.")
    ] = None,
    kind: Annotated[str, typer.Option(help="What to print: signal, candle or all.")] = "signal",
    out: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
    revision: Annotated[
        list[Path] | None,
        typer.Option(help="Revision by `calibrate` for each UTC day of the tape. Default: the artifact's calibration."),
    ] = None,
    config: ConfigPath = None,
) -> None:
    """Run a tape through the daemon's pipeline; print what it would have published as JSON lines, without a broker.

    Base topic, artifact and costs come from the configuration.
    """
    from daemon import check, tapes
    from daemon.app import rules_of
    from daemon.replay import Replay, TapeError
    from inference.engine import Model

    if kind not in {"signal", "candle", "all"}:
        raise typer.BadParameter(f"{kind!r} is not signal, candle or all", param_hint="--kind")
    if exchange:
        codec_of(exchange)
    settings = load_config(config)
    artifact = check.check(settings)
    try:
        found = tapes.find(tape, exchange)
        exchange = exchange or found.exchange or "binance"
        specs = specs_of(candles or found.specs or ["1m"])
        strange = [spec.text for spec in specs if spec.text not in artifact.manifest.specs]
        if strange and kind != "candle":
            served = ", ".join(artifact.manifest.specs)
            message = f"the artifact serves {served}, not {', '.join(strange)}; --kind candle gives candles of any spec"
            raise typer.BadParameter(message, param_hint="--candles")
        native = "" if found.recordings else _native(exchange, symbol)
        player = Replay(
            Model(artifact, rules_of(settings, artifact.manifest)),
            exchange=codec_of(exchange).name,
            symbols=symbol or [],
            specs=specs,
            base_topic=settings.mqtt.base_topic,
            revisions=[_revision(path) for path in revision or []],
        )
        with out.open("wb") if out else contextlib.nullcontext(sys.stdout.buffer) as sink:
            for output in found.outputs(player, native, lambda text: typer.echo(f"lstmd: {text}", err=True)):
                if kind in {"all", output.kind}:
                    sink.write(b'{"topic":"%s","payload":%s}\n' % (output.topic.encode(), output.payload))
    except (TapeError, OSError) as error:
        fail(str(error))


def _native(exchange: str, symbols: list[str] | None) -> str:
    """Return the exchange's name of the first symbol."""
    if not symbols:
        raise typer.BadParameter("is needed: a tape that is no recording does not say it", param_hint="--symbol")
    try:
        return codec_of(exchange).native_of(symbols[0])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--symbol") from None


def _revision(path: Path) -> "Revision":
    import msgspec

    from inference.revisions import Revision

    try:
        return msgspec.json.decode(path.read_bytes(), type=Revision)
    except (OSError, msgspec.MsgspecError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--revision") from None


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
    proxy: Proxy = None,
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
        source = open_history(exchange, rest_url, proxy=proxy)
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
    train: Annotated[
        list[Path] | None, typer.Option(help="Candles that teach the baselines, files or folders, any number.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Score from this UTC day on.")] = None,
    folds: Annotated[
        int,
        typer.Option(min=1, help="Walk forward: fit the baselines anew at so many cuts, each on what lies before it."),
    ] = 1,
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
    if folds > 1 and not train:
        raise typer.BadParameter("refits the baselines, so it needs --train", param_hint="--folds")
    try:
        scored = evaluation.assess(
            candle_files([*candles, *(more or [])]),
            artifacts.resolve(artifact),
            train=candle_files(train or []),
            since=day,
            folds=folds,
            funding=funding,
        )
        if html:
            from training.report import page

            html.write_text(page(scored), encoding="utf-8")
    except (CandlesError, OSError) as error:
        fail(str(error))
    if as_json:
        print_json(scored.result)
        return
    print_tree(scored.result)
