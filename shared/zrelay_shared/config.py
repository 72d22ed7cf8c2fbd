"""Configuration: one TOML file with profiles, `ZRELAY_*` variables and flags, read once into frozen values.

    default_profile = "home"

    [profile.home.encoder]
    endpoint = "macbook.local:7501"

    [profile.home.generator]
    endpoint = ["127.0.0.1:7503", "box.local"]  # one, or several that hold the same model

    [generate]
    format = "png"

A flag wins over a variable, a variable over the file, the file over the default, which is always "not set". The
variables are `ZRELAY_ENCODER`, `ZRELAY_VISION` and `ZRELAY_GENERATOR` (endpoints, several joined by commas),
`ZRELAY_PROFILE`, and for every other key `ZRELAY_<ROLE>_<KEY>` or `ZRELAY_GENERATE_<KEY>`.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from zrelay_shared.errors import InvalidArgument, listed
from zrelay_shared.logs import LEVELS

ROLES = ("encoder", "vision", "generator")
DEFAULT_PROFILE = "default"
"""The profile that is used where none is named, if there is one of that name."""
_KNOWN_TOP = ("default_profile", "profile", "generate")
_OTHER_VARIABLES = ("ZRELAY_PROFILE", "ZRELAY_CONFIG", "ZRELAY_STATE")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_CHOICES = {"format": ("png", "jpeg", "webp"), "log_level": LEVELS}
"""Keys that take one of a few words."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """One service: where a client finds it (`endpoint`; several are joined by commas), and how `zrelay serve` starts it
    (the rest)."""

    endpoint: str | None = None
    model: str | None = None
    listen: str | None = None
    insecure_listen: bool | None = None
    device: str | None = None
    dtype: str | None = None
    log_level: str | None = None
    grace_s: float | None = None


@dataclass(frozen=True, slots=True)
class GenerateConfig:
    """What `zrelay generate` sends where no flag says otherwise; None leaves it to the generator."""

    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    shift: float | None = None
    format: str | None = None
    quality: int | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The effective settings, and where each came from: `origins["encoder.endpoint"] == "env ZRELAY_ENCODER"`."""

    profile: str | None = None
    profiles: tuple[str, ...] = ()
    encoder: ServiceConfig = ServiceConfig()
    vision: ServiceConfig = ServiceConfig()
    generator: ServiceConfig = ServiceConfig()
    generate: GenerateConfig = GenerateConfig()
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def service(self, role: str) -> ServiceConfig:
        """The settings of "encoder", "vision" or "generator"."""
        found = {"encoder": self.encoder, "vision": self.vision, "generator": self.generator}
        return found[role]


def load(
    file: Path, environ: Mapping[str, str], *, profile: str | None = None, flags: Mapping[str, object] | None = None
) -> Config:
    """Reads the file (which may be absent) and the variables. `flags` are dotted keys, e.g. "encoder.endpoint"; None
    means the flag was not given.

    Raises InvalidArgument (CONFIG_INVALID) naming file and key, and OSError where the file cannot be read.
    """
    tables = read(file)
    profiles: dict[str, dict[str, dict[str, object]]] = tables.get("profile", {})
    name, said_by = _choose(file, tables, environ, profile)
    if name is not None and name not in profiles:
        there = f"known are {listed(sorted(profiles))}" if profiles else "there is none yet"
        raise _refusal(f"{said_by}: no profile {name!r} in {file}; {there}{_nearest(name, profiles)}")
    origins: dict[str, str] = {} if name is None else {"profile": said_by}
    layers = _Layers(file, environ, flags or {}, origins)
    chosen = profiles.get(name, {}) if name is not None else {}
    encoder, vision, generator = (
        layers.build(ServiceConfig, role, chosen.get(role, {}), f"profile.{name}.{role}") for role in ROLES
    )
    generate = layers.build(GenerateConfig, "generate", tables.get("generate", {}), "generate")
    return Config(name, tuple(sorted(profiles)), encoder, vision, generator, generate, MappingProxyType(origins))


def read(file: Path) -> dict[str, Any]:
    """The checked tables of a file; none where it does not exist. Raises as `load`."""
    if not file.exists():
        return {}
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _refusal(f"{file}: not valid TOML: {error}") from error
    _check_keys(file, "the top level", tables, _KNOWN_TOP)
    _expect(file, "default_profile", tables.get("default_profile", ""), str)
    for name, roles in _expect(file, "profile", tables.get("profile", {}), dict).items():
        _check_keys(file, f"[profile.{name}]", _expect(file, f"profile.{name}", roles, dict), ROLES)
        for role, table in roles.items():
            _check_table(file, f"profile.{name}.{role}", table, ServiceConfig)
    _check_table(file, "generate", tables.get("generate", {}), GenerateConfig)
    return tables


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A line for each `ZRELAY_*` variable that means nothing, with the nearest that does."""
    known = [*_OTHER_VARIABLES, *(_variable(role, key) for role in ROLES for key in _keys(ServiceConfig))]
    known += [_variable("generate", key) for key in _keys(GenerateConfig)]
    strange = [name for name in sorted(environ) if name.startswith("ZRELAY_") and name not in known]
    return [f"{name} means nothing to zrelay{_nearest(name, known)}" for name in strange]


class _Layers:
    """Flags over variables over the file, with a note of who won."""

    def __init__(
        self, file: Path, environ: Mapping[str, str], flags: Mapping[str, object], origins: dict[str, str]
    ) -> None:
        self._file, self._environ, self._flags, self._origins = file, environ, flags, origins

    def build(self, kind: type[T], section: str, table: Mapping[str, object], place: str) -> T:
        values: dict[str, object] = {}
        for key, wanted in _types(kind):
            dotted, variable = f"{section}.{key}", _variable(section, key)
            if self._flags.get(dotted) is not None:
                values[key], origin = self._flags[dotted], "flag"
            elif self._environ.get(variable, "") != "":
                values[key], origin = _parse(variable, self._environ[variable], wanted), f"env {variable}"
            elif key in table:
                values[key], origin = _plain(table[key], wanted), f"{self._file} [{place}]"
            else:
                continue
            _check_choice(f"{origin} {dotted}", key, values[key])
            self._origins[dotted] = origin
        return kind(**values)


def _choose(
    file: Path, tables: Mapping[str, Any], environ: Mapping[str, str], profile: str | None
) -> tuple[str | None, str]:
    if profile is not None:
        return profile, "flag"
    if named := environ.get("ZRELAY_PROFILE"):
        return named, "env ZRELAY_PROFILE"
    if named := tables.get("default_profile"):
        return named, f"{file} default_profile"
    return (DEFAULT_PROFILE if DEFAULT_PROFILE in tables.get("profile", {}) else None), f"{file} [profile.default]"


def _types(kind: type) -> Iterator[tuple[str, type]]:
    for item in fields(kind):
        yield item.name, get_args(item.type)[0]


def _keys(kind: type) -> list[str]:
    return [item.name for item in fields(kind)]


def _variable(section: str, key: str) -> str:
    return f"ZRELAY_{section.upper()}" if key == "endpoint" else f"ZRELAY_{section.upper()}_{key.upper()}"


def _parse(variable: str, text: str, wanted: type) -> object:
    if wanted is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise _refusal(f"{variable}: expected true or false, got {text!r}")
    try:
        return wanted(text)
    except ValueError as error:
        raise _refusal(f"{variable}: expected {_SPOKEN[wanted]}, got {text!r}") from error


_SPOKEN = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}


def _check_choice(place: str, key: str, value: object) -> None:
    if key in _CHOICES and value not in _CHOICES[key]:
        raise _refusal(f"{place}: expected one of {', '.join(_CHOICES[key])}, got {value!r}")


def _check_table(file: Path, place: str, table: object, kind: type) -> None:
    checked = _expect(file, place, table, dict)
    _check_keys(file, f"[{place}]", checked, _keys(kind))
    for key, wanted in _types(kind):
        if key in checked:
            value = checked[key]
            for part in value if key == "endpoint" and isinstance(value, list) and value else [value]:
                _expect(file, f"{place}.{key}", part, wanted)


def _check_keys(file: Path, place: str, table: Mapping[str, object], known: tuple[str, ...] | list[str]) -> None:
    for key in table:
        if key not in known:
            hint = f"{_nearest(key, known)}; known are {', '.join(known)}"
            raise _refusal(f"{file}: unknown key {key!r} in {place}{hint}")


def _expect(file: Path, place: str, value: object, wanted: type[T]) -> T:
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise _refusal(f"{file}: {place}: expected {_SPOKEN[wanted]}, got {value!r}")
    return value  # type: ignore[return-value]  # a whole number where a number is wanted becomes one in `_plain`


def _plain(value: object, wanted: type) -> object:
    """A value of the file as the settings hold it: whole numbers as numbers, several endpoints joined by commas."""
    if isinstance(value, list):
        return ",".join(value)
    return float(value) if wanted is float and isinstance(value, int) else value


def _nearest(name: str, known: Mapping[str, object] | tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _refusal(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="config", reason="CONFIG_INVALID")
