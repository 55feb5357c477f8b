"""Every setting: its name, default, unit and bounds.

A file sets ``[section] key``; the environment variable ``LONGPOLL_<SECTION>__<KEY>`` wins over it.
An unknown name or an impossible value stops the start: a typo must never become a setting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import limits

from server.errors import ConfigurationError

PREFIX = "LONGPOLL_"
_WHOLE = re.compile(r"-?[0-9]{1,18}\Z")
_IMPORTABLE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*\Z")


def _number(default: float, low: float, high: float) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _choice(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the server listens, and how it stops."""

    host: str = "127.0.0.1"
    port: int = _number(8080, 0, 65535)
    unix_socket: str = ""
    reuse_port: bool = False
    public_url: str = ""
    allowed_hosts: tuple[str, ...] = ()
    tls_certificate: str = ""
    tls_key: str = ""
    trusted_proxies: tuple[str, ...] = ()
    metrics_through_proxy: bool = False
    drain_seconds: float = _number(2.0, 0.0, 300.0)
    keepalive_seconds: float = _number(75.0, 0.1, 3600.0)
    receive_seconds: float = _number(30.0, 0.1, 3600.0)
    body_seconds: float = _number(600.0, 0.1, 86_400.0)
    body_bytes_per_second: float = _number(2_000, 0, 1_000_000_000)
    event_loop: str = _choice("auto", "auto", "asyncio", "uvloop")

    @property
    def is_https(self) -> bool:
        """Whether browsers reach this site by https: natively, or by a proxy in front."""
        return bool(self.tls_certificate) or self.public_url.startswith("https://")


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Which Postgres, and how it is spoken to. No DSN: the embedded one."""

    dsn: str = ""
    admin_dsn: str = ""
    listen_dsn: str = ""
    data_dir: str = ".data"
    postgres_bin: str = ""
    pool_size: int = _number(8, 1, 1000)
    timeout_seconds: float = _number(5.0, 0.1, 300.0)
    heartbeat_seconds: float = _number(2.0, 0.05, 60.0)


@dataclass(frozen=True, slots=True)
class PollingSettings:
    """How long a poll is held, how many may be, and how a missed wake-up is repaired."""

    hold_seconds: float = _number(30.0, 0.1, 600.0)
    jitter_seconds: float = _number(1.0, 0.0, 60.0)
    sweep_seconds: float = _number(5.0, 0.05, 300.0)
    linger_seconds: float = _number(60.0, 0.0, 3600.0)
    park: bool = True
    max_held: int = _number(18_000, 1, 1_000_000)
    max_held_per_user: int = _number(32, 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How long a login lasts after its last use, and how many are kept in memory."""

    days: float = _number(14.0, 0.001, 365.0)
    cache_size: int = _number(100_000, 1, 10_000_000)


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """How often one address or one user may ask, in the notation of the `limits` library; and who may go first."""

    enabled: bool = True
    login: str = "10 per minute"
    guesses: str = "10 per hour"
    register: str = "10 per hour"
    create: str = "30 per minute"
    token: str = "30 per hour"  # noqa: S105 - how often one may be made
    poll: str = "1200 per minute"
    high_priority: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """Who makes the pictures, what happens when a worker is lost, and how long pictures are kept."""

    workers: int = _number(1, 0, 64)
    generator: str = "procedural"
    step_seconds: float = _number(1.0, 0.0, 60.0)
    silent_seconds: float = _number(300.0, 0.1, 86_400.0)
    memory_mb: int = _number(2048, 0, 1_000_000_000)
    lease_seconds: float = _number(15.0, 0.2, 3600.0)
    delivery_seconds: float = _number(5.0, 0.2, 60.0)
    max_attempts: int = _number(3, 1, 100)
    retry_seconds: float = _number(2.0, 0.0, 3600.0)
    max_waiting_per_user: int = _number(500, 0, 10_000)
    max_running_per_user: int = _number(0, 0, 10_000)
    metrics_port: int = _number(0, 0, 65535)
    keep_days: float = _number(0.0, 0.0, 36_500.0)
    bin_days: float = _number(7.0, 0.0, 36_500.0)


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """What is logged, and how it looks. `auto`: colours on a terminal, JSON elsewhere."""

    level: str = _choice("info", "debug", "info", "warning", "error")
    format: str = _choice("auto", "auto", "console", "json")
    timeout_sample: float = _number(0.05, 0.0, 1.0)
    snapshot_seconds: float = _number(30.0, 0.1, 3600.0)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one process."""

    server: ServerSettings = field(default_factory=ServerSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    polling: PollingSettings = field(default_factory=PollingSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)

    def replace(self, **sections: Mapping[str, object]) -> Config:
        """Return a copy in which the named keys of the named sections differ."""
        changed = {name: dataclasses.replace(getattr(self, name), **values) for name, values in sections.items()}
        return dataclasses.replace(self, **changed)


def load(path: Path | None, environment: Mapping[str, str]) -> Config:
    """Read the settings from a TOML file, if one is given, and from the environment.

    Raises:
        ConfigurationError: a name is unknown, or a value has the wrong type or is out of bounds.
    """
    given: dict[str, dict[str, object]] = {}
    if path is not None:
        given = _read_file(path)
    for name, text in environment.items():
        if name.startswith(PREFIX) and name != f"{PREFIX}CONFIG":
            section, _, key = name.removeprefix(PREFIX).lower().partition("__")
            given.setdefault(section, {})[key] = text
    sections = {section.name: section for section in dataclasses.fields(Config)}
    for name in given:
        _check_name(name, sections, "section")
    config = Config(
        **{name: _section(name, kind.default_factory, given.get(name, {})) for name, kind in sections.items()}
    )
    _check_places(config)
    _check_generator(config.generation.generator)
    _check_together(config)
    return config


def _read_file(path: Path) -> dict[str, dict[str, object]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # not there, not UTF-8, not TOML
        raise ConfigurationError(f"{path} can't be read: {error}") from error
    for name, section in content.items():
        if not isinstance(section, dict):
            raise ConfigurationError(
                f"{path}: {name!r} stands outside any section; it belongs below a line like [server]"
            )
    return content


def _section(name: str, kind: Any, given: Mapping[str, object]) -> Any:
    fields = {each.name: each for each in dataclasses.fields(kind)}
    for key in given:
        _check_name(key, fields, f"key in [{name}]:")
    return kind(**{key: _value(f"{name}.{key}", fields[key], value) for key, value in given.items()})


def _check_name(name: str, known: Iterable[str], what: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(sorted(known))}"
        raise ConfigurationError(f"unknown {what} {name!r}; {hint}")


def _value(name: str, expected: dataclasses.Field[Any], given: object) -> object:
    convert = {"str": _text, "int": _integer, "float": _float, "bool": _boolean, "tuple[str, ...]": _list}
    value = convert[str(expected.type)](name, given)
    bounds = expected.metadata
    if "choices" in bounds and value not in bounds["choices"]:
        raise ConfigurationError(f"{name} is {value!r}; it must be one of: {', '.join(bounds['choices'])}")
    if "low" in bounds and not bounds["low"] <= value <= bounds["high"]:
        raise ConfigurationError(f"{name} is {value}; it must be between {bounds['low']} and {bounds['high']}")
    return value


def _text(name: str, given: object) -> str:
    if not isinstance(given, str):
        raise ConfigurationError(f"{name} is {given!r}; it must be a text in quotes")
    if "\0" in given:
        raise ConfigurationError(f"{name} holds a NUL character, which it must not")
    return given


def _integer(name: str, given: object) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, str) and _WHOLE.match(given.strip()):
        return int(given)
    raise ConfigurationError(f"{name} is {given!r}; it must be a whole number")


def _float(name: str, given: object) -> float:
    value = math.nan
    if isinstance(given, str | int | float) and not isinstance(given, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(given)
    if not math.isfinite(value):
        raise ConfigurationError(f"{name} is {given!r}; it must be a number")
    return value


def _boolean(name: str, given: object) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.lower() in words:
        return words[given.lower()]
    raise ConfigurationError(f"{name} is {given!r}; it must be true or false")


def _list(name: str, given: object) -> tuple[str, ...]:
    if isinstance(given, str):
        return tuple(item.strip() for item in given.split(",") if item.strip())
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return tuple(given)
    raise ConfigurationError(f"{name} is {given!r}; it must be a list of texts")


def _check_places(config: Config) -> None:
    """Refuse what would be somewhere else than anybody meant, such as an empty variable of a compose file."""
    if not config.server.host.strip():
        raise ConfigurationError(
            'server.host is empty; it must be an address, such as "127.0.0.1", or "0.0.0.0" for all'
        )
    folders = {"data_dir": config.database.data_dir, "postgres_bin": config.database.postgres_bin or "unset"}
    for name, folder in folders.items():
        if not folder.strip():
            raise ConfigurationError(f'database.{name} is empty; it must name a folder, such as ".data"')
        if folder.startswith("~"):
            raise ConfigurationError(
                f"database.{name} is {folder!r}; only a shell knows what ~ is: write the whole path"
            )


def _is_site(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port out of bounds, half an IPv6 address
        return False


def _check_generator(name: str) -> None:
    if name != "procedural" and not _IMPORTABLE.match(name):
        raise ConfigurationError(
            f'generation.generator is {name!r}; it must be "procedural", or name a function to be imported,'
            ' such as "package.module:make"'
        )


def _check_together(config: Config) -> None:
    server = config.server
    if server.unix_socket and server.reuse_port:
        raise ConfigurationError("server.unix_socket can't be shared: reuse_port, and several processes, need a port")
    if bool(server.tls_certificate) != bool(server.tls_key):
        raise ConfigurationError("server.tls_certificate and server.tls_key belong together: set both or neither")
    if server.public_url and not _is_site(server.public_url):
        raise ConfigurationError(
            f"server.public_url is {server.public_url!r}; it must begin with http:// or https://, and name a host"
        )
    for name in server.allowed_hosts:
        if not re.fullmatch(r"\*|[^\s/:*]+", name):
            raise ConfigurationError(f"server.allowed_hosts names {name!r}; it must be a name without a port, or *")
    for network in server.trusted_proxies:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise ConfigurationError(
                f"server.trusted_proxies names {network!r}; it must be an address or a network such as 10.0.0.0/8"
            ) from None
    for name in ("login", "guesses", "register", "create", "token", "poll"):
        rule = getattr(config.limits, name)
        try:
            limits.parse(rule)
        except ValueError:
            raise ConfigurationError(f'limits.{name} is {rule!r}; it must be such as "10 per minute"') from None
