"""The configuration: one TOML file with profiles, `ZRELAY_*` variables and flags, read once into frozen values.

    default_profile = "home"

    [profile.home.encoder]
    endpoint = "macbook.local:7501"

    [profile.home.generator]
    endpoint = ["127.0.0.1:7503", "box.local"]  # one, or several that hold the same model
    max_side = 2048                             # a setting of `zrelay serve generator`

    [generate]
    format = "png"

A flag takes precedence over a variable, a variable over the file, the file over the default. The word `none` gives
an optional setting the value None, with the precedence of any other value. The keys of a role's table are those of
`EndpointConfig`, which clients read, and of the role's class in `zrelay_shared.service.roles`, which the service reads.
`[profile.NAME.connection]` (`zrelay_shared.connection`) names the files of TLS. The tables of requests
(`zrelay_shared.requests`) hold defaults of requests. The variables are
`ZRELAY_ENCODER`, `ZRELAY_VISION` and `ZRELAY_GENERATOR` (endpoints, several joined by commas), `ZRELAY_PROFILE`, and
`ZRELAY_<ROLE or TABLE>_<KEY>` for every other key, for example `ZRELAY_GENERATE_WIDTH`.
"""

import difflib
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from zrelay_shared import connection, texts
from zrelay_shared.connection import ConnectionConfig, connection_settings
from zrelay_shared.errors import InvalidArgument, invalid, listed
from zrelay_shared.paths import CONFIG_REMEDY
from zrelay_shared.requests import (
    REQUEST_CONFIGS,
    ConditionConfig,
    EncodeConfig,
    EncodeImagesConfig,
    GenerateConfig,
    request_settings,
)
from zrelay_shared.service.roles import SERVICE_CONFIGS, ServiceConfig
from zrelay_shared.service.settings import Setting, Value, describe, setting

ROLES = tuple(SERVICE_CONFIGS)
PROFILE_TABLES = (*ROLES, connection.SECTION)
"""Tables of a profile."""
SECTIONS = (*PROFILE_TABLES, *REQUEST_CONFIGS)
DEFAULT_PROFILE = "default"
"""The profile that is used where none is named, if the file has one of that name."""
_OTHER_VARIABLES = ("ZRELAY_PROFILE", "ZRELAY_CONFIG", "ZRELAY_STATE")
_LEAST_LIKENESS = 0.6

MAX_CONFIG_BYTES = 1 << 20
"""Size of the configuration file. The template with all settings has about 20 KiB."""
_MAX_REFUSAL_CHARS = 1000
_MAX_DOTS = 256
"""Dots of one line. tomllib takes time and memory with the square of a key's parts: 200 KB took all memory."""
"""Similarity, 0 to 1, above which an unknown name is probably a misspelling of a known one."""
S = TypeVar("S", bound=ServiceConfig)


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Where a client finds a service. Several endpoints are joined by commas."""

    endpoint: str | None = setting(
        None,
        group="Client",
        variable="",
        metavar="HOST:PORT",
        several=True,
        help="Where clients find the service: HOST or HOST:PORT; several with the same model share the work.",
    )


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """The value of one setting and where it comes from: `flag`, `env NAME`, a place in the file, or `default`."""

    setting: Setting
    value: Value
    origin: str


@dataclass(frozen=True, slots=True)
class Config:
    """What a client needs of the configuration, and the origin of each value.

    Attributes:
        profile: The profile in use, None for none.
        profiles: Names of all profiles of the file.
        encoder, vision, generator: Where the services are.
        connection: The files with which the client connects to them.
        generate, encode, encode_images, condition: Defaults of requests.
        origins: Dotted key -> origin of what is no default, for example `{"encoder.endpoint": "env ZRELAY_ENCODER"}`.
        settings: Every setting of every section with its value, defaults included.
    """

    profile: str | None = None
    profiles: tuple[str, ...] = ()
    encoder: EndpointConfig = EndpointConfig()
    vision: EndpointConfig = EndpointConfig()
    generator: EndpointConfig = EndpointConfig()
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    encode_images: EncodeImagesConfig = field(default_factory=EncodeImagesConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    settings: tuple[EffectiveSetting, ...] = field(default=(), compare=False, repr=False)

    def service(self, role: str) -> EndpointConfig:
        """Returns where the service of a role is. Raises InvalidArgument (ROLE_INVALID)."""
        checked_role(role)
        return {"encoder": self.encoder, "vision": self.vision, "generator": self.generator}[role]


def checked_role(role: str) -> str:
    """Checks the name of a role and returns it.

    Raises:
        InvalidArgument: ROLE_INVALID, there is no such role; the message names those there are, and the nearest.
    """
    if role not in ROLES:
        remedy = _nearest(role, ROLES, cutoff=0.5).removeprefix("; ")
        raise invalid("role", f"one of {', '.join(ROLES)}", repr(role), remedy=remedy)
    return role


def load(
    file: Path,
    environ: Mapping[str, str],
    *,
    profile: str | None = None,
    flags: Mapping[str, Any] | None = None,
    joined: Collection[str] = (),
) -> Config:
    """Reads the configuration as a client needs it, and checks the settings of all services.

    Args:
        file: The TOML file, which need not exist.
        environ: Environment variables.
        profile: The profile that a flag names.
        flags: Dotted key -> value of a flag, for example `encoder.endpoint`; None where the flag was not given, and
            the word `none` for the value None.
        joined: Names of profiles of `zrelay join`. They may be chosen, too, and need no table in the file.

    Raises:
        InvalidArgument: CONFIG_INVALID; the message names the file, or the variable, and the key.
        OSError: The file cannot be read.
    """
    sources = _Sources.open(file, environ, profile, flags or {}, joined)
    origins: dict[str, str] = {} if sources.profile is None else {"profile": sources.profile_origin}
    values: dict[str, dict[str, Any]] = {}
    settings = tuple(sources.effective(one) for section in SECTIONS for one in settings_of(section))
    for found in settings:
        values.setdefault(found.setting.section, {})[found.setting.name] = found.value
        if found.origin != "default":
            origins[found.setting.dotted] = found.origin
    encoder, vision, generator = (EndpointConfig(values[role]["endpoint"]) for role in ROLES)
    return Config(
        profile=sources.profile,
        profiles=sources.profiles,
        encoder=encoder,
        vision=vision,
        generator=generator,
        connection=ConnectionConfig(**values[connection.SECTION]),
        origins=MappingProxyType(origins),
        settings=settings,
        **{section: kind(**values[section]) for section, kind in REQUEST_CONFIGS.items()},
    )


def load_service(
    kind: type[S],
    file: Path,
    environ: Mapping[str, str],
    *,
    profile: str | None = None,
    flags: Mapping[str, Any] | None = None,
    joined: Collection[str] = (),
) -> S:
    """Reads the settings of a service.

    Args:
        kind: The settings class.
        file, environ, profile, flags, joined: As in `load`.

    Raises:
        InvalidArgument: CONFIG_INVALID as in `load`; SETTING_MISSING where a required setting has no value.
        OSError: The file cannot be read.
    """
    sources = _Sources.open(file, environ, profile, flags or {}, joined)
    values: dict[str, Any] = {}
    for one in describe(kind, kind.role):
        found = sources.effective(one)
        if one.required and found.value is None:
            raise invalid(
                one.key,
                f"a value for the {kind.role}",
                "none",
                reason="SETTING_MISSING",
                remedy=f"pass {one.flags[0]} {one.metavar}, or set {one.variable} or `{one.key}` in "
                f"[profile.NAME.{kind.role}] of {file}; `zrelay up` runs the demo checkpoint",
            )
        values[one.name] = found.value
    try:
        return kind(**values)
    except ValueError as error:  # settings that are valid alone, but not together
        raise _refusal(f"{kind.role}: {error}") from error


def settings_of(section: str) -> tuple[Setting, ...]:
    """Returns the settings of a section: those of a role are read by clients and the service, others by clients."""
    if section == connection.SECTION:
        return connection_settings()
    if section in REQUEST_CONFIGS:
        return request_settings(section)
    return describe(EndpointConfig, section) + describe(SERVICE_CONFIGS[section], section)


def read(file: Path) -> dict[str, Any]:
    """Reads and checks the tables of a file; returns an empty dict where it does not exist. Raises as `load`."""
    data = b""
    try:
        if file.exists():
            with file.open("rb") as opened:
                data = opened.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        message = f"the configuration cannot be read ({error.strerror}); {CONFIG_REMEDY}"
        raise OSError(error.errno, message, str(file)) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise _refusal(f"{file}: expected a configuration of at most {MAX_CONFIG_BYTES:,} bytes, got a larger file")
    if (dots := max(line.count(b".") for line in data.split(b"\n"))) > _MAX_DOTS:
        raise _refusal(f"{file}: expected lines of at most {_MAX_DOTS} dots, got one of {dots}")
    try:
        tables = tomllib.loads(texts.decode(data, f"{file}"))
    except texts.NotText as error:
        raise _refusal(f"{error}") from error
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: very long numbers, deep nesting
        raise _refusal(f"{file}: not valid TOML: {error}") from error
    _check_keys(file, "the top level", tables, ("default_profile", "profile", *REQUEST_CONFIGS))
    if not isinstance(tables.get("default_profile", ""), str):
        raise _refusal(f"{file}: default_profile: expected a string, got {tables['default_profile']!r}")
    for name, roles in _table(file, "profile", tables.get("profile", {})).items():
        _check_keys(file, f"[profile.{name}]", _table(file, f"profile.{name}", roles), PROFILE_TABLES)
        for role, table in roles.items():
            _check_table(file, f"profile.{name}.{role}", table, settings_of(role))
    for section in REQUEST_CONFIGS:
        _check_table(file, section, tables.get(section, {}), settings_of(section))
    return tables


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Returns a message for each `ZRELAY_*` variable that has no meaning, with the nearest name that has one."""
    known = {name: name.lower().split("_")[1:] for name in _OTHER_VARIABLES}
    for one in (one for section in SECTIONS for one in settings_of(section)):
        known[one.variable] = [*one.section.split("_"), *one.key.split("_")]
    unknown = [name for name in sorted(environ) if name.startswith("ZRELAY_") and name not in known]
    return [f"{name} is not a variable of zrelay{_nearest_variable(name, known)}" for name in unknown]


@dataclass(frozen=True, slots=True)
class _Sources:
    """Flags, variables and the tables of the chosen profile, in order of precedence."""

    file: Path
    environ: Mapping[str, str]
    flags: Mapping[str, Any]
    tables: Mapping[str, Any]
    profile: str | None
    profile_origin: str

    @classmethod
    def open(
        cls,
        file: Path,
        environ: Mapping[str, str],
        profile: str | None,
        flags: Mapping[str, Any],
        joined: Collection[str] = (),
    ) -> "_Sources":
        """Reads the file and chooses the profile. Raises as `load`."""
        tables = read(file)
        profiles = tables.get("profile", {})
        name, origin = _choose_profile(file, tables, environ, profile)
        if name is not None and name not in profiles and name not in joined:
            names = sorted({*profiles, *joined})
            known = f"known are {listed(names)}" if names else "the file has none"
            if not file.exists() and not joined:
                known = "the file does not exist: `zrelay config init` writes it, ZRELAY_CONFIG names another"
            place = "--profile" if origin == "flag" else origin
            raise _refusal(f"{place}: no profile {name!r} in {file}; {known}{_nearest(name, names)}")
        return cls(file, environ, flags, tables, name, origin)

    @property
    def profiles(self) -> tuple[str, ...]:
        return tuple(sorted(self.tables.get("profile", {})))

    def effective(self, one: Setting) -> EffectiveSetting:
        """Returns the value of a setting and its origin. Raises InvalidArgument (CONFIG_INVALID)."""
        if (given := self.flags.get(one.dotted)) is not None:
            return EffectiveSetting(one, None if one.is_none(given) else given, "flag")
        if text := self.environ.get(one.variable):
            try:
                return EffectiveSetting(one, one.parse(text), f"env {one.variable}")
            except ValueError as error:
                raise _refusal(f"{one.variable}: {error}") from error
        place, table = one.section, self.tables.get(one.section, {})
        if one.section not in REQUEST_CONFIGS:
            place = f"profile.{self.profile}.{one.section}"
            table = self.tables.get("profile", {}).get(self.profile, {}).get(one.section, {})
        if one.key in table:  # checked by `read`
            return EffectiveSetting(one, one.from_toml(table[one.key]), f"{self.file} [{place}]")
        return EffectiveSetting(one, one.start_default(), "default")


def _choose_profile(
    file: Path, tables: Mapping[str, Any], environ: Mapping[str, str], profile: str | None
) -> tuple[str | None, str]:
    """Returns the name of the profile in use and its origin."""
    if profile is not None:
        return profile, "flag"
    if named := environ.get("ZRELAY_PROFILE"):
        return named, "env ZRELAY_PROFILE"
    if named := tables.get("default_profile"):
        return named, f"{file} default_profile"
    return (DEFAULT_PROFILE if DEFAULT_PROFILE in tables.get("profile", {}) else None), f"{file} [profile.default]"


def _check_table(file: Path, place: str, table: object, known: Iterable[Setting]) -> None:
    by_key = {one.key: one for one in known}
    checked = _table(file, place, table)
    _check_keys(file, f"[{place}]", checked, tuple(by_key))
    for key, value in checked.items():
        try:
            by_key[key].from_toml(value)
        except ValueError as error:
            raise _refusal(f"{file}: {place}.{key}: {error}") from error


def _check_keys(file: Path, place: str, table: Mapping[str, object], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            hint = f"{_nearest(key, known)}; known are {', '.join(known)}"
            raise _refusal(f"{file}: unknown key {key!r} in {place}{hint}")


def _table(file: Path, place: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refusal(f"{file}: {place}: expected a table, got {value!r}")
    return value


def _nearest(name: str, known: Iterable[str], cutoff: float = _LEAST_LIKENESS) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def _nearest_variable(name: str, known: Mapping[str, list[str]]) -> str:
    """As `_nearest`, for variables, whose words are compared one by one, so that STPES finds NUM_INFERENCE_STEPS.

    Args:
        name: The unknown variable.
        known: Variable -> its words. If the name begins with the words of a section, only its variables count.
    """
    words = name.lower().split("_")[1:]
    sections = [section.split("_") for section in SECTIONS if words[: section.count("_") + 1] == section.split("_")]
    if section := max(sections, key=len, default=[]):
        words = words[len(section) :]
        known = {one: rest[len(section) :] for one, rest in known.items() if rest[: len(section)] == section}
    if not words:
        return ""

    def by_words(one: str) -> float:
        nearest = [max((_ratio(word, other) for other in known[one]), default=0.0) for word in words]
        return sum(nearest) / len(nearest)

    def likeness(one: str) -> float:
        return by_words(one) + _ratio(name, one) + name.startswith(f"{one}_") / 2

    best = max(known, key=likeness)
    near = by_words(best) >= _LEAST_LIKENESS or name.startswith(f"{best}_")
    return f"; did you mean {best!r}?" if near else ""


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _refusal(message: str) -> InvalidArgument:
    if len(message) > _MAX_REFUSAL_CHARS:  # it may quote a name or a value of the file
        message = f"{message[:_MAX_REFUSAL_CHARS]}..."
    return InvalidArgument(message, field="config", reason="CONFIG_INVALID")
