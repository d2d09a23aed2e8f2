"""What the commands share: options, reading the configuration, printing results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from config.schema import Config

EXIT_FAILURE, EXIT_CONFIG = 1, 78
ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="TOML file. Default: /etc/lstmd/lstmd.toml if it exists, else the shipped one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SYSTEM_CONFIG = Path("/etc/lstmd/lstmd.toml")


def load_config(path: Path | None) -> "Config":
    """Read the configuration: the file named, the system's, or the shipped one."""
    from config.load import load

    return load(SYSTEM_CONFIG if path is None and SYSTEM_CONFIG.exists() else path)


def fail(text: str) -> NoReturn:
    """Say what went wrong, and end with 1."""
    typer.echo(f"lstmd: {text}", err=True)
    raise SystemExit(EXIT_FAILURE)


def print_json(value: Any) -> None:
    """Print a result for machines."""
    import json

    typer.echo(json.dumps(value, indent=2))


def print_tree(value: dict[str, Any], indent: int = 0) -> None:
    """Print nested figures for people."""
    for key, inner in value.items():
        if isinstance(inner, dict) and any(isinstance(part, dict) for part in inner.values()):
            typer.echo(f"{'  ' * indent}{key}")
            print_tree(inner, indent + 1)
        else:
            typer.echo(f"{'  ' * indent}{key}: {inner}")
