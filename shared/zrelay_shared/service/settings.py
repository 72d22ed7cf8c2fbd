"""Settings as frozen dataclasses, from which flags, environment variables, TOML keys, help and documentation follow.

    @dataclass(frozen=True)
    class ExampleConfig:
        max_queue_bytes: int = setting(
            64 << 20, help="Size of the queue.", group="Queue", key="max_queue_mib", unit="MiB", scale=1 << 20
        )

`describe(ExampleConfig, "example")` then yields one `Setting` with the flag `--max-queue-mib`, the environment variable
`ZRELAY_EXAMPLE_MAX_QUEUE_MIB` and the TOML key `max_queue_mib`. Users write MiB, the field holds bytes.

A field whose type allows None is optional. Users write the word `none` for None in flags, variables and TOML, so that
a source can reset what a source of lower precedence sets. A path of that name is written `./none`.
"""

import os
from collections.abc import Callable, Hashable
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeAlias, cast, get_args, get_origin

if TYPE_CHECKING:  # `zrelay generate --help` has no paths, and starts sooner without pathlib
    from pathlib import Path

Scalar: TypeAlias = "str | int | float | bool | Path"
Value: TypeAlias = "Scalar | tuple[Scalar, ...] | None"
"""What a setting can hold."""

NONE = "none"
"""The word that users write for the value None of an optional setting."""

SERVICE_GROUPS = ("Model", "Server", "Security", "Device", "Queue", "Limits", "Storage", "Client")
REQUEST_GROUPS = ("Image", "Guidance", "Prompt", "Reference images", "Output", "Many images", "Connection")
GROUPS = SERVICE_GROUPS + REQUEST_GROUPS
"""Headings under which settings are listed, in this order: those of services, then those of requests."""
_LONGEST_METAVAR = 30
"""Characters of `a|b|c` in a help text; longer lists of words are written as a sentence."""

_METADATA = "zrelay.setting"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_KIND_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
_A_PATH = "a path"


@dataclass(frozen=True, slots=True)
class _Definition:
    """What the author of a settings class writes about a field; see `setting`."""

    help: str
    group: str
    key: str
    flags: tuple[str, ...]
    variable: str | None
    unit: str
    scale: float
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    metavar: str
    default_text: str
    computed: Callable[[], Value] | None
    several: bool
    pairs: bool
    secret: bool
    example: Value


def setting(
    default: Any = MISSING,
    *,
    help: str,
    group: str,
    key: str = "",
    flags: tuple[str, ...] = (),
    variable: str | None = None,
    unit: str = "",
    scale: float = 1,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    default_text: str = "",
    computed: Callable[[], Value] | None = None,
    several: bool = False,
    pairs: bool = False,
    secret: bool = False,
    example: Value = None,
) -> Any:
    """Declares a field of a settings class.

    Args:
        default: Value of the field, in the field's own unit. A field without one must be set by the user.
        help: One sentence for `--help`, `zrelay config init` and the reference page.
        group: Heading, one of `GROUPS`.
        key: TOML key, by default the name of the field. Flag and variable are derived from it.
        flags: Spellings on the command line, the main one first; by default `--` and the key with hyphens.
        variable: Name of the variable after `ZRELAY_<SECTION>`, by default `_<KEY>`; "" for `ZRELAY_<SECTION>` itself.
        unit: Unit in which users write the value, for example `MiB`.
        scale: How many of the field's own unit one `unit` is.
        minimum: Smallest value, in the user's unit.
        maximum: Largest value, in the user's unit.
        choices: The words that are allowed.
        metavar: Placeholder in the help, for example `DIR`.
        default_text: Describes the default where the value itself says too little.
        computed: Computes the default when a service starts, for paths that depend on the environment.
        several: The TOML value may be a list of strings, which are joined by commas.
        pairs: For a field of `tuple[str, ...]`: each item is `KEY=VALUE`, its flag may be repeated, and the TOML value
            may be a table.
        secret: The value is never shown.
        example: A value for the commented configuration file, in the user's unit, where there is no default.
    """
    definition = _Definition(
        help, group, key, flags, variable, unit, scale, minimum, maximum, choices, metavar, default_text, computed,
        several, pairs, secret, example,
    )  # fmt: skip
    return field(default=default, metadata={_METADATA: definition})


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a section: everything that command line, environment, file and documentation need.

    Attributes:
        section: Section of the configuration: a role, or `generate`.
        name: Name of the field in the settings class.
        key: TOML key.
        flags: Spellings on the command line.
        variable: Environment variable.
        kind: Type of the value, or of the items of a list: str, int, float, bool or pathlib.Path.
        is_list: Whether the value is a tuple of items.
        required: Whether the user must set it.
        optional: Whether users write the word `none` for None: the value may be None, and `none` is not a choice.
        default: Value of the field where nobody sets it (before `computed`); None for a required setting.
    """

    section: str
    name: str
    key: str
    flags: tuple[str, ...]
    variable: str
    kind: type
    is_list: bool
    required: bool
    optional: bool
    default: Value
    _definition: _Definition

    @property
    def help(self) -> str:
        """One sentence that describes the setting."""
        return self._definition.help

    @property
    def group(self) -> str:
        """The heading under which it is listed."""
        return self._definition.group

    @property
    def unit(self) -> str:
        """Unit in which users write the value, "" for none."""
        return self._definition.unit

    @property
    def choices(self) -> tuple[str, ...]:
        """Words that are allowed; empty for any."""
        return self._definition.choices

    @property
    def pairs(self) -> bool:
        """Whether the items of the list are `KEY=VALUE`."""
        return self._definition.pairs

    @property
    def secret(self) -> bool:
        """Whether the value must not be shown."""
        return self._definition.secret

    @property
    def dotted(self) -> str:
        """`section.key`, as `zrelay config` shows it."""
        return f"{self.section}.{self.key}"

    @property
    def is_path(self) -> bool:
        """Whether the value, or each item of the list, is a Path."""
        return issubclass(self.kind, os.PathLike)

    @property
    def metavar(self) -> str:
        """Placeholder for the value in help texts."""
        by_kind = {int: "N", float: "X", str: "TEXT"}
        words = "|".join(self.choices)
        value = self._definition.metavar or (words if len(words) <= _LONGEST_METAVAR else "WORD")
        if not value and self.is_list:
            value = "KEY=VALUE" if self.pairs else "LIST"
        value = value or self.unit.upper() or ("DIR" if self.is_path else by_kind.get(self.kind, ""))
        return f"{value}|{NONE}" if self._names_none else value

    @property
    def limits(self) -> str:
        """The allowed range in words, "" where there is none."""
        low, high = self._definition.minimum, self._definition.maximum
        parts = [f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else ""]
        return " and ".join(part for part in parts if part)

    @property
    def description(self) -> str:
        """The help, followed by the unit, the values that are allowed, and whether it may be none."""
        choices = f"one of {', '.join(self.choices)}" if self.choices else ""
        allowed = ", ".join(part for part in (f"in {self.unit}" if self.unit else "", choices, self.limits) if part)
        sentences = [self.help]
        if allowed:
            sentences.append(f"{allowed[0].upper()}{allowed[1:]}.")
        if self._names_none:
            sentences.append(f"May be {NONE}.")
        return " ".join(sentences)

    @property
    def default_text(self) -> str:
        """The default in the user's unit, "" where the setting is required or has no default."""
        if self._definition.default_text or self.default is None:
            return self._definition.default_text
        return f"{self.format(self.default)} {self.unit}".strip()

    @property
    def example(self) -> Value:
        """The default in the user's unit, or an example where there is none."""
        if self.default is not None:
            return self.to_user(self.default)
        if self._definition.example is None and self.is_path:
            return "/path/to/file" if self._definition.metavar == "FILE" else "/path/to/folder"
        return self._definition.example

    def start_default(self) -> Value:
        """Returns the value where nobody sets it, computed now where it depends on the environment."""
        computed = self._definition.computed
        return self.default if computed is None else computed()

    def is_none(self, value: object) -> bool:
        """Returns whether a user's value is the word for None."""
        return self.optional and value == NONE

    def parse(self, text: str) -> Value:
        """Reads a value from a flag or variable.

        Raises:
            ValueError: The text is not a valid value; the message is `expected ..., got ...`.
        """
        if self.is_none(text):
            return None
        if self.is_list:
            try:
                return tuple(self.parse_item(part.strip()) for part in text.split(","))
            except ValueError:
                raise ValueError(f"expected {self._items} separated by commas, got {text!r}") from None
        return self.parse_item(text)

    def parse_item(self, text: str) -> Scalar:
        """Reads one item of a list, or a value that is not a list.

        Raises:
            ValueError: As `parse`.
        """
        if self.kind is bool:
            if text.lower() in _TRUE + _FALSE:
                return text.lower() in _TRUE
            raise ValueError(f"expected true or false, got {text!r}")
        if not text:
            raise ValueError(f"expected {self._expected}, got an empty string")
        if self.is_path:
            return self._parse_path(text)
        try:
            if self.kind is not str and (not text.isascii() or "_" in text):
                raise ValueError(text)  # int and float also read the digits of other scripts, and underscores
            number = self.kind(text)
        except ValueError:
            raise ValueError(f"expected {self._expected}, got {text!r}") from None
        return self._accept(number)

    def _parse_path(self, text: str) -> "Path":
        if "\0" in text:
            raise ValueError(f"expected {self._expected}, got {text!r}")
        try:
            return cast("type[Path]", self.kind)(text).expanduser()
        except RuntimeError:  # the user after ~ does not exist, or has no home folder
            raise ValueError(f"expected {self._expected}, got {text!r}, whose home folder is unknown") from None

    def from_toml(self, value: object) -> Value:
        """Reads a value of the configuration file.

        Raises:
            ValueError: As `parse`.
        """
        if self.is_none(value):
            return None
        if self._definition.several and isinstance(value, list) and value:
            if all(isinstance(part, str) for part in value):
                return ",".join(value)
            value = next(part for part in value if not isinstance(part, str))
        if self.is_list:
            if self.pairs and isinstance(value, dict):
                value = [f"{key}={item}" if isinstance(item, str) else item for key, item in value.items()]
            if not isinstance(value, list):
                raise ValueError(f"expected a list of {self._items}, got {value!r}")
            return tuple(self._item_from_toml(item) for item in value)
        return self._item_from_toml(value)

    def _item_from_toml(self, value: object) -> Scalar:
        if self.is_path and isinstance(value, str):
            return self.parse_item(value)
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            raise ValueError(f"expected {self._expected}, got {value!r}")
        return self._accept(value)

    def check(self, value: Value) -> None:
        """Checks a value of the field, in the field's own unit; for settings objects that are built in code.

        Raises:
            ValueError: The value is not allowed; the message is `<name>: expected ..., got ...`.
        """
        if value is None:
            return
        if isinstance(value, tuple):
            for item in value:
                self.check(item)
            return
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name}: expected {self._expected}, got {value!r}")
        # The bound is compared in the field's own unit (a limit of 1 MiB becomes 1 byte): tests use tiny limits.
        low, high = self._definition.minimum, self._definition.maximum
        if isinstance(value, int | float) and (
            (low is not None and value < low) or (high is not None and value > high * self._definition.scale)
        ):
            raise ValueError(f"{self.name}: expected {self.limits}, got {value}")

    def format(self, value: Value) -> str:
        """Writes a value in the user's unit, as `parse` reads it."""
        if value is None:
            return NONE
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, tuple):
            return ",".join(self.format(item) for item in value)
        return f"{self.to_user(value)}"

    def to_user(self, value: Value) -> Value:
        """Returns a value as users write it in TOML: in the user's unit, whole numbers without a fraction."""
        if isinstance(value, os.PathLike):
            return str(value)
        if value is None:
            return NONE if self.optional else None
        if isinstance(value, tuple):
            return tuple(cast("Scalar", self.to_user(item)) for item in value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        scaled = value / self._definition.scale
        return int(scaled) if scaled.is_integer() else scaled

    @property
    def _items(self) -> str:
        """The items of a list, in words."""
        return "KEY=VALUE" if self.pairs else self._kind_name.removeprefix("a ") + "s"

    @property
    def _kind_name(self) -> str:
        return _A_PATH if self.is_path else _KIND_NAMES[self.kind]

    @property
    def _expected(self) -> str:
        if self.pairs:
            return "KEY=VALUE"
        return self._or_none(f"one of {', '.join(self.choices)}" if self.choices else self._kind_name)

    def _or_none(self, words: str) -> str:
        return f"{words} or {NONE}" if self.optional else words

    @property
    def _names_none(self) -> bool:
        """Whether help names the word `none`. Help of requests does not, because nearly all of them take it."""
        return self.optional and self.group in SERVICE_GROUPS

    def _accept(self, value: Any) -> Scalar:
        """Checks a value in the user's unit and converts it to the field's own. Words may be written with hyphens."""
        if self.choices and value not in self.choices:
            if (word := str(value).replace("-", "_")) not in self.choices:
                raise ValueError(f"expected {self._expected}, got {value!r}")
            return word
        if self.pairs and value.find("=") < 1:
            raise ValueError(f"expected {self._expected}, got {value!r}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return cast("Scalar", value)  # a str
        low, high = self._definition.minimum, self._definition.maximum
        if value != value or (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(f"expected {self._or_none(self.limits or 'a number')}, got {value:g}")
        return cast("Scalar", value if self._definition.scale == 1 else self.kind(value * self._definition.scale))


def describe(kind: type[Any], section: str) -> tuple[Setting, ...]:
    """Returns the settings of a class, in the order of `GROUPS` and then of the fields.

    Args:
        kind: A dataclass whose fields are declared with `setting`; other fields are left out.
        section: Section of the configuration that it belongs to.
    """
    return _described(cast(Hashable, kind), section)


@cache
def _described(kind: Hashable, section: str) -> tuple[Setting, ...]:
    found = [_describe(item, section) for item in fields(cast(Any, kind)) if _METADATA in item.metadata]
    return tuple(sorted(found, key=lambda one: GROUPS.index(one.group)))


def check(settings: object, section: str) -> None:
    """Checks every field of a settings object, for its `__post_init__`.

    Raises:
        ValueError: A value is not allowed; the message names the field, what is expected and what it is.
    """
    for one in describe(type(settings), section):
        one.check(getattr(settings, one.name))


def _describe(item: Any, section: str) -> Setting:
    definition: _Definition = item.metadata[_METADATA]
    key = definition.key or item.name
    suffix = f"_{key.upper()}" if definition.variable is None else definition.variable
    kind = item.type
    may_be_none = isinstance(kind, UnionType) and NoneType in get_args(kind)
    if may_be_none:
        kind = next(part for part in get_args(kind) if part is not NoneType)
    is_list = get_origin(kind) is tuple
    if is_list:
        kind = get_args(kind)[0]
    required = item.default is MISSING
    return Setting(
        section=section,
        name=item.name,
        key=key,
        flags=definition.flags or (f"--{key.replace('_', '-')}",),
        variable=f"ZRELAY_{section.upper()}{suffix}",
        kind=kind,
        is_list=is_list,
        required=required,
        optional=may_be_none and NONE not in definition.choices,
        default=None if required else item.default,
        _definition=definition,
    )
