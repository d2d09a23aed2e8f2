"""Read the configuration: a TOML file, `LSTMD_` variables over it, secrets from systemd's credentials directory.

Every fault is collected, so that an operator sees all of them at once, each with its key and the nearest valid one.
"""

import difflib
import os
import pathlib
import tomllib
import typing
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from config.schema import Config

EXIT_CONFIG = 78
"""sysexits.h EX_CONFIG; systemd does not restart on it (RestartPreventExitStatus)."""
CREDENTIALS = ("username", "password", "ca_file", "client_cert", "client_key")
"""Keys of [mqtt] that a credential `mqtt_<key>` may supply: the first two by its text, the others by its path."""


class Problem(NamedTuple):
    """One fault in the configuration."""

    key: str
    reason: str
    nearest: str | None = None

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" + (f"; did you mean {self.nearest}?" if self.nearest else "")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` says why."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def shipped() -> pathlib.Path:
    """Path of the configuration that comes with the package."""
    return pathlib.Path(str(resources.files("config") / "lstmd.toml"))


def load(path: pathlib.Path | None = None) -> Config:
    """Read and check the file at `path` (none: the shipped one), the environment and the credentials.

    Raises:
        ConfigError: something is wrong; holds all faults found.

    """
    table = _read_toml(path or shipped())
    strangers = list(_unknown_variables())
    try:
        _add_credentials(table)
        config = Config(**table)
    except ValidationError as error:
        raise ConfigError([*strangers, *_problems(error)]) from None
    except SettingsError as error:
        raise ConfigError([*strangers, Problem("environment", f"{error}: {error.__cause__}")]) from None
    if strangers:
        raise ConfigError(strangers)
    return config


def _read_toml(path: pathlib.Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([Problem(str(path), error.strerror or str(error))]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), f"not TOML: {error}")]) from None


def _add_credentials(table: dict[str, Any]) -> None:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    mqtt = table.setdefault("mqtt", {})
    if not isinstance(mqtt, dict):
        return
    for key in CREDENTIALS if folder else ():
        path = pathlib.Path(folder or "", f"mqtt_{key}")
        if path.is_file():
            mqtt[key] = path.read_text(encoding="utf-8").strip() if key in ("username", "password") else str(path)
    if isinstance(name := mqtt.get("password_file"), str) and "password" not in mqtt:
        _check_password_file(pathlib.Path(name).expanduser(), mqtt)


def _check_password_file(path: pathlib.Path, mqtt: dict[str, Any]) -> None:
    """Put the file's content in place of its name; where it cannot be read, leave the name for the schema to refuse."""
    try:
        mqtt["password"] = path.read_text(encoding="utf-8").strip()
    except OSError:
        return
    del mqtt["password_file"]


def _problems(error: ValidationError) -> list[Problem]:
    details: list[dict[str, Any]] = [dict(e) for e in error.errors()]
    # A list whose entries were refused is also called too short: that follows from the entries' own faults.
    parents = {detail["loc"][:n] for detail in details for n in range(len(detail["loc"]))}
    return [_problem(detail) for detail in details if detail["type"] != "too_short" or detail["loc"] not in parents]


def _problem(error: dict[str, Any]) -> Problem:
    location = error["loc"]
    key = _dotted(location)
    if error["type"] == "extra_forbidden":
        return Problem(key, "unknown key", _nearest(location))
    if error["type"] == "missing":
        return Problem(key, "missing: at least one [[feeds]] table is needed" if key == "feeds" else "missing")
    reason = error["msg"].removeprefix("Value error, ")
    return Problem(key, reason[:1].lower() + reason[1:], _nearest_value(error))


def _nearest_value(error: dict[str, Any]) -> str | None:
    """Closest allowed value, for keys that take one of a list."""
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return None
    allowed = [word.strip("'") for word in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
    return next(iter(difflib.get_close_matches(error["input"].lower(), allowed, 1)), None)


def _dotted(location: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _nearest(location: tuple[str | int, ...]) -> str | None:
    """Name the valid key closest to an unknown one: a sibling if one is alike, else its like in another section."""
    *parents, name = location
    prefix, plain = _dotted(tuple(parents)), ".".join(p for p in parents if isinstance(p, str))
    siblings = [key.rpartition(".")[2] for key in _keys(Config) if key.rpartition(".")[0] == plain]
    close = difflib.get_close_matches(str(name), siblings, 1)
    if close:
        return f"{prefix}.{close[0]}".lstrip(".")
    elsewhere = {key.rpartition(".")[2]: key for key in _keys(Config)}
    close = difflib.get_close_matches(str(name), elsewhere, 1, cutoff=0.75)
    return elsewhere[close[0]] if close else None


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = [field.annotation, *typing.get_args(field.annotation)]
        for section in inner:
            if isinstance(section, type) and issubclass(section, BaseModel):
                yield from _keys(section, f"{prefix}{name}.")


def _unknown_variables() -> Iterator[Problem]:
    """Find `LSTMD_X__Y` variables whose section does not exist: pydantic-settings passes over those in silence."""
    for variable in sorted(os.environ):
        section, split, _ = variable.removeprefix("LSTMD_").lower().partition("__")
        if variable.startswith("LSTMD_") and split and section not in Config.model_fields:
            close = difflib.get_close_matches(section, Config.model_fields, 1)
            yield Problem(variable, "no such section", f"LSTMD_{close[0].upper()}__…" if close else None)
