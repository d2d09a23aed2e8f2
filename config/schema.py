"""Every setting of the daemon: its type, unit, bounds and default, each said once.

Units are the last part of a name. `None` as a default says in its docstring who decides instead.
"""

import hashlib
import os
import pathlib
import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

EXCHANGES = ("binance", "bybit", "bingx", "bitget", "bitmex")
_SPEC = re.compile(r"[1-9]\d*[smhdt]|\d+(\.\d+)?[v$]")
_SYMBOL = re.compile(r"[^/:\s]+/[^/:\s]+:[^/:\s]+")
_EMBEDDED = re.compile(r"embedded(?::(\d{1,5}))?")


def default_state_folder() -> pathlib.Path:
    """Where state lies unless the config says: systemd's state directory, else the user's."""
    home = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local" / "state"
    return pathlib.Path(os.environ.get("STATE_DIRECTORY", "").split(":")[0] or pathlib.Path(home) / "lstmd")


def _url(text: str, *schemes: str, port: int = 9000) -> str:
    parts = urlsplit(text)
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"{text!r} is not an address such as {schemes[0]}://127.0.0.1:{port}")
    if parts.username or parts.password:
        raise ValueError("an address holds no user name or password: they have keys of their own")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{text!r}: scheme, host and port only")
    _ = parts.port  # raises ValueError when out of range
    return text.rstrip("/")


def _broker_url(text: str) -> str:
    match = _EMBEDDED.fullmatch(text)
    if match:
        if match[1] and int(match[1]) > 65535:
            raise ValueError(f"{text!r}: a port is at most 65535")
        return text
    return _url(text, "mqtt", "mqtts", port=1883)


def proxy_address(text: str) -> str:
    """Return a proxy's address if it is one; what is said of it never shows its password.

    Raises:
        ValueError: it is none.

    """
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "socks5", "socks5h") or not parts.hostname or not port:
        raise ValueError("not an address such as http://127.0.0.1:3128, socks5://… or socks5h://…, with its port")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("scheme, user, password, host and port only")
    if bool(parts.username) != bool(parts.password):
        raise ValueError("user and password go together")
    return text.rstrip("/")


def _spec(text: str) -> str:
    if not _SPEC.fullmatch(text):
        raise ValueError(f"{text!r} is no candle spec; examples: 5s 1m 4h 1d 100t 50v 1000000$")
    return text


def _symbol(text: str) -> str:
    if text != "all" and not _SYMBOL.fullmatch(text) and not set("*?[") & set(text):
        raise ValueError(f"{text!r} is no unified contract symbol such as BTC/USDT:USDT, no glob, and not 'all'")
    return text


def _contract(text: str) -> str:
    if not _SYMBOL.fullmatch(text) or set("*?[") & set(text):
        raise ValueError(
            f"{text!r} is no unified contract symbol such as BTC/USDT:USDT; the list is fixed, without globs"
        )
    return text


def _exchange(text: str) -> str:
    if text not in EXCHANGES and not re.fullmatch(r"ccxt:[a-z0-9]+", text):
        raise ValueError(f"{text!r} is not one of {', '.join(EXCHANGES)}, nor ccxt:<id>")
    return text


def _topic_level(text: str) -> str:
    if set("+#$\0") & set(text) or any(map(str.isspace, text)) or not all(text.split("/")):
        raise ValueError(f"{text!r}: no + # $, no space and no empty level in a topic")
    return text


def _listen(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not host:port")
    return text


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError("each entry once")
    return values


Path = Annotated[pathlib.Path, AfterValidator(pathlib.Path.expanduser)]
UserFile = Annotated[FilePath, BeforeValidator(lambda v: pathlib.Path(v).expanduser() if isinstance(v, str) else v)]
BrokerUrl = Annotated[str, AfterValidator(_broker_url)]
Specs = Annotated[
    tuple[Annotated[str, AfterValidator(_spec)], ...],
    BeforeValidator(_listed),
    AfterValidator(_unique),
    Field(min_length=1),
]
Symbols = Annotated[
    tuple[Annotated[str, AfterValidator(_symbol)], ...],
    BeforeValidator(_listed),
    AfterValidator(_unique),
    Field(min_length=1),
]
Contracts = Annotated[
    tuple[Annotated[str, AfterValidator(_contract)], ...], BeforeValidator(_listed), AfterValidator(_unique)
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Mqtt(_Section):
    """The broker that signals go to."""

    url: BrokerUrl = "embedded"
    """`embedded` or `embedded:PORT` starts the bundled broker on loopback (1883); else `mqtt://host:port` or `mqtts://…`."""
    base_topic: Annotated[str, AfterValidator(_topic_level)] = "lstmd"
    """First level (or levels) of all topics."""
    username: str | None = None
    """User name at the broker; none: anonymous."""
    password: SecretStr | None = None
    """Better not in the file: a credential `mqtt_password`, the variable LSTMD_MQTT__PASSWORD, or a `password_file`."""
    password_file: UserFile | None = None
    """File that holds the password, and nothing else."""
    ca_file: UserFile | None = None
    """Certificates to trust for `mqtts`; none: the system's."""
    client_cert: UserFile | None = None
    """Our certificate for `mqtts`, PEM."""
    client_key: UserFile | None = None
    """Its key, PEM, without a pass phrase."""
    keepalive_s: Annotated[int, Field(ge=5, le=3600)] = 30
    """Silence after which we ask for a sign of life; after one and a half of it the broker publishes our last will."""
    publish_candles: bool = False
    """Whether closed candles are published too, on `…/candle`."""
    hummingbot: bool = False
    """Whether the first candle spec of each market is also published for hummingbot's `ai_livestream` controller."""
    inflight_max: Annotated[int, Field(ge=1, le=1000)] = 100
    """QoS 1 messages sent and not yet acknowledged, at most."""

    @property
    def embedded_port(self) -> int | None:
        """Port of the bundled broker (0: any free one), or None where `url` names a broker of its own."""
        match = _EMBEDDED.fullmatch(self.url)
        return int(match[1] or 1883) if match else None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("client_cert and client_key go together")
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file: one of them")
        return self


class Store(_Section):
    """The SQLite file that carries journal, snapshots and outbox over a restart."""

    path: Path = Field(default_factory=default_state_folder)
    """Folder for all state; systemd's $STATE_DIRECTORY where that is set, else ~/.local/state/lstmd."""
    outbox_max_hours: Annotated[float, Field(gt=0)] = 72.0
    """Age of the oldest unsent signal past which the oldest become one `gap` message."""
    outbox_max_rows: Annotated[int, Field(ge=100)] = 1_000_000
    """Unsent signals past which the oldest become one `gap` message."""
    outbox_max_bytes: Annotated[int, Field(ge=1_000_000)] = 1_000_000_000
    """Their bytes, likewise."""
    sent_max_days: Annotated[float, Field(gt=0)] = 30.0
    """Age past which delivered signals are forgotten, by the exchange's time; `replay` then computes them again."""
    sent_max_rows: Annotated[int, Field(ge=100)] = 1_000_000
    """Delivered signals past which the oldest are forgotten."""
    sent_max_bytes: Annotated[int, Field(ge=1_000_000)] = 500_000_000
    """Their bytes, likewise."""
    journal_keep: Annotated[int, Field(ge=2000)] = 10_000
    """Closed candles kept per market and spec: two epochs with their warm-up at least, a day more with a guard on."""
    journal_max_days: Annotated[float, Field(gt=0)] = 400.0
    """Age past which candles are forgotten, but for those that a start may need; markets without newer ones, wholly."""
    journal_max_bytes: Annotated[int, Field(ge=1_000_000)] = 1_000_000_000
    """Bytes of all candles, shared alike by all markets and specs; likewise."""
    snapshot_every: Annotated[int, Field(ge=1, le=1000)] = 64
    """Closed candles between two snapshots of a market's state; after a crash, those since are folded again."""


class Model(_Section):
    """What predicts."""

    artifact: str = "default"
    """`default`, the artifact shipped with the package, or a folder that holds one."""


class Decision(_Section):
    """What the trade behind a signal costs, and how sure the model must be. Part of every signal's `policy`."""

    taker_fee_bps: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """Fee of one fill, basis points."""
    half_spread_bps: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Half of the usual spread, paid once per fill, basis points."""
    enter_edge_bps: Annotated[float, Field(ge=-10_000, le=10_000)] | None = None
    """Edge above which a side is taken, basis points; none: the artifact's own threshold."""
    exit_edge_bps: Annotated[float, Field(ge=-10_000, le=10_000)] | None = None
    """Edge below which it is given up, basis points; none: the artifact's own threshold."""
    probability_min: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability a side needs at least to be taken; one that is held is kept below it."""
    volatility_target_bps: Annotated[float, Field(gt=0, le=10_000)] = 10.0
    """Deviation of equity over the horizon that `size_hint` aims at, basis points."""
    cooldown_candles: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Candles to stay flat after a losing exit, within the UTC day; none: no such guard."""
    daily_loss_limit_bps: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Loss of a UTC day, basis points of the position, at which to stay flat until 00:00; none: no such guard."""

    @model_validator(mode="after")
    def _hysteresis(self) -> Self:
        enter, leave = self.enter_edge_bps, self.exit_edge_bps
        if enter is not None and leave is not None and leave > enter:
            raise ValueError("exit_edge_bps is at most enter_edge_bps")
        return self


class Live(_Section):
    """Provisional signals while a candle forms."""

    min_interval_ms: Annotated[int, Field(ge=0, le=60_000)] = 250
    """Pause between two of one market and candle spec, milliseconds."""


class Log(_Section):
    """Lines on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level written."""
    format: Literal["json", "console"] = "json"
    """`json`: one object a line; `console`: for people."""


class Metrics(_Section):
    """Figures for Prometheus."""

    enabled: bool = True
    """Whether they are served at all."""
    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:9464"
    """Address and port of /metrics."""


class Feed(_Section):
    """Markets of one exchange."""

    exchange: Annotated[str, AfterValidator(_exchange)]
    """`binance`, `bybit`, `bingx`, `bitget`, `bitmex`, or `ccxt:<id>` for any other."""
    symbols: Symbols
    """ccxt unified symbols, `all`, or globs."""
    candles: Specs = ("1m",)
    """Candle specs: `5s 1m 4h 1d` by time, `100t` by trades, `50v` by volume, `1000000$` by value."""
    close: Literal["trades", "exchange"] = "trades"
    """`trades`: a candle counts as soon as our own is complete; `exchange`: only once the exchange's own has come."""
    calibrate_on: Contracts = ()
    """Markets whose last seven days revise the calibration each UTC day; none: the artifact's own is in force."""
    redundant: bool = False
    """Whether a second connection carries the same streams all the time, so that the loss of one loses nothing."""
    proxy: SecretStr | None = None
    """Proxy for all of it: `http://`, `socks5://` or `socks5h://[user:password@]host:port`; none: none at all."""
    ws_url: str | None = None
    """Replaces scheme, host and port of the exchange's websocket address; the path stays."""
    rest_url: str | None = None
    """Likewise for REST."""

    @field_validator("proxy")
    @classmethod
    def _through(cls, proxy: SecretStr | None) -> SecretStr | None:
        return proxy and SecretStr(proxy_address(proxy.get_secret_value()))

    @field_validator("ws_url")
    @classmethod
    def _websocket(cls, text: str | None) -> str | None:
        return text and _url(text, "ws", "wss")

    @field_validator("rest_url")
    @classmethod
    def _rest(cls, text: str | None) -> str | None:
        return text and _url(text, "http", "https")


class Config(BaseSettings):
    """All of it. The environment (`LSTMD_MQTT__URL`) goes before the file."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="LSTMD_", env_nested_delimiter="__")

    mqtt: Mqtt = Mqtt()
    store: Store = Field(default_factory=Store)
    model: Model = Model()
    decision: Decision = Decision()
    live: Live = Live()
    log: Log = Log()
    metrics: Metrics = Metrics()
    feeds: tuple[Feed, ...] = Field(min_length=1)

    @field_validator("feeds")
    @classmethod
    def _each_market_once(cls, feeds: tuple[Feed, ...]) -> tuple[Feed, ...]:
        named = [(feed.exchange, symbol) for feed in feeds for symbol in feed.symbols]
        twice = sorted({f"{exchange} {symbol}" for exchange, symbol in named if named.count((exchange, symbol)) > 1})
        if twice:
            raise ValueError(f"named in more than one feed: {', '.join(twice)}; a market's candles go in one feed")
        return feeds

    def fingerprint(self) -> str:
        """Tell two configurations apart: hash of every setting but the secrets (they print as stars), 16 hex digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (pydantic-settings calls with these names)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override what the file said; read no dotenv."""
        return env_settings, init_settings
