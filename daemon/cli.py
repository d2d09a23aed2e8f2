"""The command line. Each command imports what it needs when it runs, so that `--help` is quick.

Exit codes: 0 fine, 1 failure, 2 usage, 78 configuration.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from config.schema import Config, Mqtt
    from daemon.mqtt import Credentials
    from feeds.emulator.server import Emulator

EXIT_FAILURE, EXIT_CONFIG = 1, 78
OPERATOR_FAULTS = (
    ("config.load", "ConfigError"),
    ("daemon.metrics", "MetricsError"),
    ("daemon.mqtt", "BrokerRefused"),
    ("daemon.store", "StoreError"),
    ("feeds.errors", "RequestRefused"),
    ("inference.artifact", "ArtifactError"),
)
"""By module, so that none is imported for its error's sake."""

app = typer.Typer(
    name="lstmd",
    help="Stateful LSTM signals on closed candles of crypto futures, published to MQTT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="TOML file. Default: /etc/lstmd/lstmd.toml if it exists, else the shipped one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SYSTEM_CONFIG = Path("/etc/lstmd/lstmd.toml")


@app.command()
def run(config: ConfigPath = None) -> None:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C; logs go to standard error."""
    settings = _load(config)
    from daemon import log_setup

    log_setup.configure(level=settings.log.level, format=settings.log.format)
    from daemon import app as daemon_app

    raise typer.Exit(daemon_app.run(settings))


@app.command("check-config")
def check_config(config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Check a configuration, the environment and the artifact; start nothing. Exit 78 if anything is wrong."""
    from config.load import ConfigError
    from daemon import check

    if not as_json:
        typer.echo(f"fine; artifact {check.check(_load(config)).model_id}")
        return
    try:
        check.check(_load(config))
        problems = []
    except ConfigError as error:
        problems = [problem._asdict() for problem in error.problems]
    _print_json({"ok": not problems, "problems": problems})
    raise typer.Exit(EXIT_CONFIG if problems else 0)


@app.command()
def demo(
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Seconds to go on after the first signal. Default: until Ctrl-C.")
    ] = None,
    speed: Annotated[float, typer.Option(min=0.1, max=3600, help="Exchange seconds per second.")] = 60.0,
) -> None:
    """Show it all at work without a network: an emulated exchange, a broker, the shipped model, a live table."""
    import asyncio

    from rich.console import Console

    from daemon.demo import demo as run_demo

    raise typer.Exit(asyncio.run(run_demo(seconds=seconds, speed=speed, console=Console())))


@app.command()
def watch(
    url: Annotated[
        str | None, typer.Argument(help="mqtt://host:port. Default: the broker of the configuration.")
    ] = None,
    config: ConfigPath = None,
    base: Annotated[str | None, typer.Option(help="Base topic. Default: the configuration's.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many seconds. Default: at Ctrl-C.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every message as a JSON line.")] = False,
) -> None:
    """Follow the topics: a table in a terminal, else a line per signal."""
    import asyncio

    from rich.console import Console

    from daemon import clock
    from daemon import watch as watching
    from daemon.mqtt import MqttLink

    mqtt = _load(config).mqtt
    at_hand = mqtt.url if mqtt.embedded_port is None else f"mqtt://127.0.0.1:{mqtt.embedded_port}"
    root = base or mqtt.base_topic

    async def follow() -> None:
        link = MqttLink(url or at_hand, client_id=f"lstmd-watch-{clock.boot_id()}", credentials=_credentials(mqtt))
        stop = watching.stop_event(seconds)
        if as_json:
            await watching.dump(link, root, console=Console(), stop=stop)
        else:
            await watching.show(link, watching.Board(root), console=Console(), stop=stop)

    asyncio.run(follow())


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
        _fail(f"--port {port}: {error.strerror}")


def _emulator(tapes: list[str], *, begin: str, seed: int, history_h: float, speed: float) -> "Emulator":
    import datetime as dt

    from feeds.emulator.server import Emulator
    from feeds.emulator.sources import tape_from

    try:
        begin_ns = int(dt.datetime.fromisoformat(begin).replace(tzinfo=dt.UTC).timestamp()) * 1_000_000_000
    except ValueError:
        raise typer.BadParameter(f"{begin!r} is not a day such as 2025-01-06", param_hint="--begin") from None
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
def train(
    candles: Annotated[list[Path], typer.Option("--candles", help="Parquet file of candles; more may follow.")],
    out: Annotated[Path, typer.Option(help="Folder of the artifact to write.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further files of candles.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML recipe. Default: the shipped artifact's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit an artifact on candles and write it with its measured parity and its report card."""
    from training import recipe as recipes
    from training.dataset import CandlesError
    from training.fit import train as fit

    try:
        chosen = recipes.load(recipe or recipes.DEFAULT)
        summary = fit([*candles, *(more or [])], out, chosen, progress=sys.stderr.isatty())
    except (CandlesError, recipes.RecipeError) as error:
        _fail(str(error))
    if as_json:
        _print_json({"folder": str(summary.folder), "model": summary.model_id, "report": summary.report})
        return
    typer.echo(f"{summary.model_id} in {summary.folder}")
    _print_tree(summary.report)


@app.command()
def evaluate(
    candles: Annotated[
        list[Path], typer.Option("--candles", help="Parquet file of candles to score; more may follow.")
    ],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further files of candles.")] = None,
    artifact: Annotated[str, typer.Option(help="`default` or a folder.")] = "default",
    train: Annotated[list[Path] | None, typer.Option(help="Candles that teach the baselines, any number.")] = None,
    since: Annotated[str | None, typer.Option(help="Score from this UTC day on.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score an artifact on candles, beside baselines on the very same rows."""
    import datetime as dt

    from inference import artifact as artifacts
    from training import evaluate as evaluation
    from training.dataset import CandlesError

    try:
        day = dt.date.fromisoformat(since) if since else None
    except ValueError:
        raise typer.BadParameter(f"{since!r} is not a day such as 2025-01-06", param_hint="--since") from None
    try:
        scored = evaluation.assess([*candles, *(more or [])], artifacts.resolve(artifact), train=train, since=day)
    except CandlesError as error:
        _fail(str(error))
    if html:
        from training.report import page

        html.write_text(page(scored), encoding="utf-8")
    if as_json:
        _print_json(scored.result)
        return
    _print_tree(scored.result)


@app.command()
def schema(
    what: Annotated[str, typer.Argument(help="payloads, asyncapi or config.")] = "payloads",
    base: Annotated[str, typer.Option(help="Base topic, for asyncapi.")] = "lstmd",
) -> None:
    """Print JSON Schema of the payloads, AsyncAPI of the topics, or JSON Schema of the configuration."""
    import importlib.metadata

    if what == "payloads":
        from daemon.topics import json_schemas

        _print_json(json_schemas())
    elif what == "asyncapi":
        from daemon.asyncapi import document

        _print_json(document(version=importlib.metadata.version("lstmd"), base=base))
    elif what == "config":
        from config.schema import Config

        _print_json(Config.model_json_schema())
    else:
        raise typer.BadParameter(f"{what!r} is not payloads, asyncapi or config", param_hint="WHAT")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at the installation: versions, name clashes, broker, artifact, ports. Exit 1 if anything is wrong."""
    from daemon.doctor import examine

    findings = []
    for finding in examine({"embedded broker": 1883, "metrics": 9464}):
        findings.append(finding)
        if not as_json:
            mark = {True: "ok   ", False: "WRONG", None: "     "}[finding.ok]
            typer.echo(f"{mark} {finding.name:<16} {finding.detail}")
    if as_json:
        _print_json([finding._asdict() for finding in findings])
    raise typer.Exit(EXIT_FAILURE if any(finding.ok is False for finding in findings) else 0)


def _load(path: Path | None) -> "Config":
    from config.load import load

    return load(SYSTEM_CONFIG if path is None and SYSTEM_CONFIG.exists() else path)


def _credentials(mqtt: "Mqtt") -> "Credentials":
    from daemon.mqtt import Credentials

    password = mqtt.password.get_secret_value() if mqtt.password else None
    return Credentials(mqtt.username, password, mqtt.ca_file, mqtt.client_cert, mqtt.client_key)


def _print_tree(value: dict[str, Any], indent: int = 0) -> None:
    """Print nested figures for people."""
    for key, inner in value.items():
        if isinstance(inner, dict) and any(isinstance(part, dict) for part in inner.values()):
            typer.echo(f"{'  ' * indent}{key}")
            _print_tree(inner, indent + 1)
        else:
            typer.echo(f"{'  ' * indent}{key}: {inner}")


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))


def _fail(text: str, code: int = EXIT_FAILURE) -> NoReturn:
    typer.echo(f"lstmd: {text}", err=True)
    raise SystemExit(code)


def _operator_faults() -> tuple[type[Exception], ...]:
    """Return the errors that are the operator's to mend, of the modules that this run has needed at all."""
    loaded = (vars(sys.modules[name]).get(error) for name, error in OPERATOR_FAULTS if name in sys.modules)
    return tuple(error for error in loaded if error is not None)


def main() -> None:
    """Run a command; what is the operator's to mend is said in one line each."""
    try:
        app()
    except* _operator_faults() as group:
        for text in _lines(group):
            typer.echo(f"lstmd: {text}", err=True)
        sys.exit(EXIT_CONFIG)


def _lines(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [text for part in error.exceptions for text in _lines(part)]
    return str(error).splitlines()


if __name__ == "__main__":
    main()
