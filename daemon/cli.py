"""The command line. Each command imports what it needs when it runs, so that `--help` is quick.

Exit codes: 0 fine, 1 failure, 2 usage, 78 configuration.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon import cli_offline
from daemon.cli_shared import EXIT_CONFIG, EXIT_FAILURE, AsJson, ConfigPath, load_config, print_json

if TYPE_CHECKING:
    from config.schema import Mqtt
    from daemon.mqtt import Credentials

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


@app.command()
def run(config: ConfigPath = None) -> None:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C; logs go to standard error."""
    settings = load_config(config)
    from daemon import log_setup

    log_setup.configure(level=settings.log.level, format=settings.log.format)
    from daemon import app as daemon_app

    raise typer.Exit(daemon_app.run(settings, lambda: load_config(config)))


@app.command("check-config")
def check_config(config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Check a configuration, the environment and the artifact; start nothing. Exit 78 if anything is wrong."""
    from config.load import ConfigError
    from daemon import check

    if not as_json:
        typer.echo(f"fine; artifact {check.check(load_config(config)).model_id}")
        return
    try:
        check.check(load_config(config))
        problems = []
    except ConfigError as error:
        problems = [problem._asdict() for problem in error.problems]
    print_json({"ok": not problems, "problems": problems})
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

    mqtt = load_config(config).mqtt
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
def schema(
    what: Annotated[str, typer.Argument(help="payloads, asyncapi or config.")] = "payloads",
    base: Annotated[str, typer.Option(help="Base topic, for asyncapi.")] = "lstmd",
) -> None:
    """Print JSON Schema of the payloads, AsyncAPI of the topics, or JSON Schema of the configuration."""
    import importlib.metadata

    if what == "payloads":
        from daemon.topics import json_schemas

        print_json(json_schemas())
    elif what == "asyncapi":
        from daemon.asyncapi import document

        print_json(document(version=importlib.metadata.version("lstmd"), base=base))
    elif what == "config":
        from config.schema import Config

        print_json(Config.model_json_schema())
    else:
        raise typer.BadParameter(f"{what!r} is not payloads, asyncapi or config", param_hint="WHAT")


@app.command()
def doctor(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="TOML file whose exchanges and broker to examine too. Default: none."),
    ] = None,
    listen: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds for which candles are made of an exchange's trades, to be compared with its own; 0: none. "
            "Default: until each market has closed one, 130 s at most.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at the installation and, with -c, at each exchange and the broker; say what is wrong and what to do.

    Exit 1 if anything is wrong, 78 if it is the configuration.
    """
    import asyncio

    from config.load import ConfigError
    from daemon import doctor as doctors

    report = doctors.Report(as_json=as_json)
    settings, ports = None, {"embedded broker": 1883, "metrics": 9464}
    if config is not None:
        from daemon import check, log_setup

        log_setup.configure(level="error", format="console")
        try:
            settings = load_config(config)
            check.check(settings)
        except ConfigError as error:
            if not as_json:
                raise
            print_json([doctors.Finding("configuration", False, str(one)).told() for one in error.problems])
            raise typer.Exit(EXIT_CONFIG) from None
        ports = doctors.ports_of(settings)
    for finding in doctors.examine(ports):
        report.tell(finding)
    if settings is not None:
        from daemon.examine import examine

        live = examine(settings, _credentials(settings.mqtt), report.tell, listen_s=listen, progress=report.progress)
        asyncio.run(live)
    if as_json:
        print_json([finding.told() for finding in report.findings])
    raise typer.Exit(EXIT_FAILURE if report.failed else 0)


def _credentials(mqtt: "Mqtt") -> "Credentials":
    from daemon.mqtt import Credentials

    password = mqtt.password.get_secret_value() if mqtt.password else None
    return Credentials(mqtt.username, password, mqtt.ca_file, mqtt.client_cert, mqtt.client_key)


app.add_typer(cli_offline.app)


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
