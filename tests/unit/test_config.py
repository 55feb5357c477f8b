"""Settings: where they come from, and that no typo ever becomes one."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from server import config
from server.config import Config, load
from server.errors import ConfigurationError

KEYS = [
    (section.name, key.name, key)
    for section in dataclasses.fields(Config)
    for key in dataclasses.fields(section.default_factory)  # type: ignore[arg-type]
]

# Names that scripts rely on.
FIXED = [
    "LONGPOLL_SERVER__HOST",
    "LONGPOLL_SERVER__PORT",
    "LONGPOLL_DATABASE__DSN",
    "LONGPOLL_DATABASE__ADMIN_DSN",
    "LONGPOLL_DATABASE__LISTEN_DSN",
    "LONGPOLL_DATABASE__DATA_DIR",
    "LONGPOLL_POLLING__HOLD_SECONDS",
    "LONGPOLL_POLLING__SWEEP_SECONDS",
    "LONGPOLL_POLLING__MAX_HELD",
    "LONGPOLL_POLLING__MAX_HELD_PER_USER",
    "LONGPOLL_GENERATION__WORKERS",
    "LONGPOLL_LIMITS__ENABLED",
]


def value_of(settings: Config, section: str, key: str) -> Any:
    return getattr(getattr(settings, section), key)


def another_value(key: dataclasses.Field[Any]) -> tuple[str, Any]:
    """Return a legal value that isn't the default, as a text and as what it becomes."""
    special = {"public_url": "https://x.example", "trusted_proxies": "10.0.0.0/8, ::1", "generator": "my.models:make"}
    if key.name in special:
        text = special[key.name]
        return text, tuple(text.split(", ")) if key.name == "trusted_proxies" else text
    if str(key.type).startswith("tuple"):
        return "10.0.0.0, 10.0.0.1", ("10.0.0.0", "10.0.0.1")
    if key.name in {"login", "register", "create", "guesses", "token", "poll"}:
        return "1 per second", "1 per second"
    if "choices" in key.metadata:
        choice = key.metadata["choices"][-1]
        return choice, choice
    made: dict[str, tuple[str, Any]] = {
        "str": ("other", "other"),
        "bool": ("false" if key.default else "true", not key.default),
        "int": ("7", 7),
        "float": ("0.75", 0.75),
    }
    return made[str(key.type)]


def test_without_a_file_everything_has_its_default() -> None:
    assert load(None, {}) == Config()
    assert load(None, {"PATH": "/bin", "LONGPOLL_CONFIG": "config.toml"}) == Config()


@pytest.mark.parametrize(("section", "name", "key"), KEYS, ids=[f"{section}.{name}" for section, name, _ in KEYS])
def test_the_environment_overrides_every_key(
    tmp_path: Path, section: str, name: str, key: dataclasses.Field[Any]
) -> None:
    text, value = another_value(key)
    given = {f"LONGPOLL_{section}__{name}".upper(): text}
    if name.startswith("tls_"):  # a pair
        given |= {"LONGPOLL_SERVER__TLS_CERTIFICATE": text, "LONGPOLL_SERVER__TLS_KEY": text}
    file = tmp_path / "config.toml"
    default = "[]" if key.type == "tuple[str, ...]" else str(key.default).lower()
    file.write_text(f"[{section}]\n{name} = {default if key.type != 'str' else repr(key.default)}\n")
    assert value_of(load(file, {}), section, name) == value_of(Config(), section, name)
    assert value_of(load(file, given), section, name) == value
    assert value_of(load(None, given), section, name) == value


def test_the_names_that_scripts_rely_on_exist() -> None:
    assert set(FIXED) <= {f"LONGPOLL_{section}__{name}".upper() for section, name, _ in KEYS}


def test_a_file_is_read_with_the_types_it_has(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[server]\nport = 9000\ntrusted_proxies = ["10.0.0.0/8"]\n[limits]\nenabled = false\n[polling]\nhold_seconds = 5\n'
    )
    settings = load(file, {"LONGPOLL_SERVER__HOST": "0.0.0.0"})  # noqa: S104 - only read
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 9000)  # noqa: S104
    assert settings.server.trusted_proxies == ("10.0.0.0/8",)
    assert settings.limits.enabled is False
    assert settings.polling.hold_seconds == 5.0


def refusal(tmp_path: Path, text: str) -> str:
    """Return why this file is refused."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load(file, {})
    return str(refused.value)


def test_a_typo_is_refused_with_what_was_meant(tmp_path: Path) -> None:
    assert refusal(tmp_path, "[pooling]\n") == "unknown section 'pooling'; did you mean 'polling'?"
    assert refusal(tmp_path, "[polling]\nhold_second = 1") == (
        "unknown key in [polling]: 'hold_second'; did you mean 'hold_seconds'?"
    )
    assert "known are: cache_size, days" in refusal(tmp_path, "[sessions]\nzzz = 1")
    assert "known are: database, generation, limits" in refusal(tmp_path, "[zzz]\n")
    assert "'port' stands outside any section" in refusal(tmp_path, "port = 1\n")
    for name in ("LONGPOLL_SERVER__PROT", "LONGPOLL_SEVER__PORT", "LONGPOLL_PORT", "LONGPOLL_SERVER", "LONGPOLL_"):
        with pytest.raises(ConfigurationError, match="unknown"):
            load(None, {name: "1"})


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('[server]\nport = "abc"', "server.port is 'abc'; it must be a whole number"),
        ('[server]\nport = "--5"', "it must be a whole number"),
        ("[server]\nport = 80.0", "it must be a whole number"),
        ("[server]\nport = true", "it must be a whole number"),
        ("[server]\nport = 65536", "server.port is 65536; it must be between 0 and 65535"),
        ("[server]\nport = -1", "it must be between 0 and 65535"),
        ("[server]\nhost = 5", "server.host is 5; it must be a text in quotes"),
        ("[server]\nreuse_port = 1", "it must be true or false"),
        ('[server]\nreuse_port = "maybe"', "it must be true or false"),
        ("[server]\ntrusted_proxies = [1]", "it must be a list of texts"),
        ('[server]\ntrusted_proxies = ["nonsense"]', "server.trusted_proxies names 'nonsense'"),
        ('[server]\npublic_url = "example.org"', "it must begin with http:// or https://"),
        ('[server]\npublic_url = "https://"', "it must begin with http:// or https://"),
        ('[server]\ntls_key = "key.pem"', "server.tls_certificate and server.tls_key belong together"),
        ('[server]\ntls_certificate = "certificate.pem"', "server.tls_certificate and server.tls_key belong together"),
        ('[polling]\nhold_seconds = "long"', "polling.hold_seconds is 'long'; it must be a number"),
        ("[polling]\nhold_seconds = nan", "it must be a number"),
        ("[polling]\nhold_seconds = inf", "it must be a number"),
        ("[polling]\nhold_seconds = true", "it must be a number"),
        (f"[polling]\nhold_seconds = {'9' * 400}", "it must be a number"),
        ("[polling]\nhold_seconds = 0", "it must be between 0.1 and 600.0"),
        ("[polling]\nmax_held = 0", "it must be between 1 and 1000000"),
        ('[logging]\nlevel = "loud"', "logging.level is 'loud'; it must be one of: debug, info, warning, error"),
        (
            '[generation]\ngenerator = "magic"',
            "generation.generator is 'magic'; it must be \"procedural\", or name a function",
        ),
        ('[limits]\npoll = "0"', "limits.poll is '0'"),
        ('[limits]\nlogin = "often"', "limits.login is 'often'; it must be such as \"10 per minute\""),
        ("[server", "can't be read"),
        (f"[server]\nport = {'9' * 5000}", "can't be read"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(tmp_path: Path, line: str, text: str) -> None:
    assert text in refusal(tmp_path, line)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'[server]\nhost = "\xff"\n')
    for name in ("missing.toml", "latin.toml"):
        with pytest.raises(ConfigurationError, match=re.escape(name)):
            load(tmp_path / name, {})


def test_every_default_is_within_its_own_bounds() -> None:
    for section, name, key in KEYS:
        assert config._value(f"{section}.{name}", key, _as_given(value_of(Config(), section, name))) is not None


def _as_given(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_the_file_beside_the_code_lists_every_key_with_its_default() -> None:
    """Whoever opens config.toml sees all that can be set; each line that isn't plain has a comment."""
    path = Path(__file__).resolve().parents[2] / "config.toml"
    listed = tomllib.loads(path.read_text())
    defaults = {
        section: {name: _as_given(value) for name, value in values.items()}
        for section, values in dataclasses.asdict(Config()).items()
    }
    assert listed == defaults
    assert [list(values) for values in listed.values()] == [list(values) for values in defaults.values()]
    assert load(path, {}) == Config()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("DATABASE__DATA_DIR", "", "database.data_dir is empty; it must name a folder"),
        ("DATABASE__DATA_DIR", "  ", "database.data_dir is empty; it must name a folder"),
        ("DATABASE__DATA_DIR", "~/pictures", "only a shell knows what ~ is: write the whole path"),
        ("DATABASE__DATA_DIR", "a\0b", "database.data_dir holds a NUL character"),
        ("DATABASE__POSTGRES_BIN", "~/bin", "only a shell knows what ~ is: write the whole path"),
        ("SERVER__HOST", "", "server.host is empty; it must be an address"),
    ],
)
def test_a_place_that_nobody_meant_is_refused(name: str, value: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        load(None, {f"LONGPOLL_{name}": value})
