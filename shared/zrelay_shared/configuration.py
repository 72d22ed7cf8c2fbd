"""The values of a model's config.json that its code reads, in one form for every spelling, and their digest.

A table for each kind of component lists these values with the defaults of the published class. Models are built of the
normalised values and of nothing else, so what was hashed is what runs, whatever else the file holds and whatever
defaults the installed libraries have. Limits (`axes_lens`) go to the model, but are not part of the digest.
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from zrelay_shared.checkpoints import ComponentFolder
from zrelay_shared.errors import CheckpointError, listed

Reader: TypeAlias = Callable[[object], object]
"""Normalises a value of config.json. Raises ValueError with what was expected."""

_COPY = "copy the file again from its checkpoint"
_OTHER_MODEL = "zrelay does not run such a model: use another checkpoint"
_COPY_OR_OTHER = "copy the file again from its checkpoint, or use another checkpoint"
_REQUIRED = object()
"""Stands for a default that differs between releases of the library, so the file must have the value."""

_ACTIVATIONS = {
    name: name
    for name in (
        "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "hardswish",
        "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "tanh",
    )
} | {"swish": "silu"}  # fmt: skip
"""transformers' name of an activation -> the name of the same function. The variants of GELU round differently."""
_VAE_ACTIVATIONS = {name: name for name in ("gelu", "mish", "relu", "silu")} | {"swish": "silu"}
"""The same for diffusers, which ignores case."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The normalised configuration of one component.

    Attributes:
        kind: Kind of the component, a key of `TABLES`.
        values: What the model is built of: every value of the table.
        identity: What is hashed: the values without limits, rope parameters as what they do to the rotation.
    """

    kind: str
    values: Mapping[str, Any]
    identity: Mapping[str, object]

    @property
    def digest(self) -> str:
        """The `configuration_digest`: SHA-256 (hex) of `identity` as canonical JSON."""
        return combined_digest(self)

    def arguments(self) -> dict[str, Any]:
        """Returns a copy of the values that a library may change."""
        return {name: copy.deepcopy(value) for name, value in self.values.items()}


def read_configuration(
    kind: str, config: Mapping[str, object], *, file: str = "config.json", inside: str = ""
) -> Configuration:
    """Normalises the configuration of a component.

    Args:
        kind: A key of `TABLES`.
        config: The parsed config.json, or the part of it that describes the component.
        file: Name of the file in error messages.
        inside: Key of `config` in the file, "" if it is the whole file.

    Raises:
        CheckpointError: A value is missing, of another type, out of range or of a kind that is not supported. The
            message names the file and the key.
    """
    values, identity = TABLES[kind].read(config, _Place(file, f"{inside}." if inside else ""))
    return Configuration(kind, MappingProxyType(values), MappingProxyType(identity))


def read_component(component: ComponentFolder) -> Configuration:
    """Normalises the configuration of a component's folder. Raises CheckpointError."""
    return read_configuration(component.name, component.config, file=f"{component.path.name}/config.json")


def configuration_digest(kind: str, config: Mapping[str, object], *, file: str = "config.json") -> str:
    """Returns the digest of a configuration. Arguments and errors as for `read_configuration`."""
    return read_configuration(kind, config, file=file).digest


def combined_digest(*configurations: Configuration) -> str:
    """Returns one digest of the configurations of several components: SHA-256 (hex) of their canonical JSON.

    It is one object, kind -> values: ASCII, keys sorted, without blanks, numbers as Python writes them.
    """
    content = {each.kind: dict(each.identity) for each in configurations}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in a file, for error messages."""

    file: str
    path: str = ""

    def inside(self, key: str) -> "_Place":
        return _Place(self.file, f"{self.path}{key}.")

    def refusal(self, key: str, expected: str, got: object, *, remedy: str = _COPY) -> CheckpointError:
        shown = got if isinstance(got, _Text) else _shown(got)
        name = f"{self.path}{key}"
        return CheckpointError(
            f"{self.file}: {name}: expected {expected}, got {shown}; {remedy}",
            metadata={"file": self.file, "key": name, "expected": expected, "got": shown},
        )


class _Text(str):
    """Text for an error message that is shown as it is."""

    __slots__ = ()


class _Unsupported(ValueError):
    """A value that is well-formed but describes a model that zrelay does not run. Says what was expected."""


def _shown(value: object) -> str:
    text = "null" if value is None else json.dumps(value) if isinstance(value, bool | str) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _get(config: Mapping[str, object], names: Sequence[str], place: _Place) -> object:
    """Returns the value of a key or of its alias, `_REQUIRED` if there is none."""
    found = {name: config[name] for name in names if name in config}
    values = list(found.values())
    if any(value != values[0] for value in values[1:]):
        raise place.refusal(" and ".join(found), "the same value in both", _Text(listed([*map(_shown, values)])))
    return values[0] if values else _REQUIRED


@dataclass(frozen=True, slots=True)
class _Value:
    """How one value of config.json is read: a row of the table of a kind of component.

    Attributes:
        name: Its key, and the argument of the class.
        read: Checks and normalises it.
        default: Its value where the file has none.
        aliases: Other keys for it.
        limit: It only bounds what the model accepts.
    """

    name: str
    read: Reader
    default: object = _REQUIRED
    aliases: tuple[str, ...] = ()
    limit: bool = False

    def of(self, config: Mapping[str, object], place: _Place) -> object:
        found = _get(config, (self.name, *self.aliases), place)
        found = self.default if found is _REQUIRED else found
        if found is _REQUIRED:
            raise place.refusal(self.name, "a value, as every release of this model has", _Text("none"))
        try:
            return self.read(found)
        except ValueError as error:
            remedy = _COPY_OR_OTHER if isinstance(error, _Unsupported) else _COPY
            raise place.refusal(self.name, str(error), found, remedy=remedy) from error


Values: TypeAlias = dict[str, Any]
Check: TypeAlias = Callable[[Mapping[str, object], Values, Values, _Place], None]
"""Checks values against each other and adds those that depend on others: (config, values, identity, place)."""


@dataclass(frozen=True, slots=True)
class Table:
    """The values of one kind of component.

    Attributes:
        rows: Values that are read on their own.
        parts: Key of a nested configuration -> its table.
        finish: Runs after the rows.
        added: Names that `finish` adds.
        unread: Parameters of the class that change nothing in what zrelay computes, with the reason.
    """

    rows: tuple[_Value, ...]
    parts: Mapping[str, "Table"] = field(default_factory=dict)
    finish: Check | None = None
    added: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """Names of all values, without those of parts."""
        return frozenset((*(row.name for row in self.rows), *self.parts, *self.added))

    def read(self, config: Mapping[str, object], place: _Place) -> tuple[Values, Values]:
        """Returns values and identity. Raises CheckpointError."""
        values: Values = {row.name: row.of(config, place) for row in self.rows}
        identity = {row.name: values[row.name] for row in self.rows if not row.limit}
        for name, table in self.parts.items():
            part = config.get(name, {})
            if not isinstance(part, Mapping):
                raise place.refusal(name, "an object", part)
            values[name], identity[name] = table.read(part, place.inside(name))
        if self.finish is not None:
            self.finish(config, values, identity, place)
        return values, identity


def _whole(least: int = 1, most: int = 2**31 - 1) -> Reader:
    def read(value: object) -> int:
        number = _finite(value)
        if number is None or number != int(number) or not least <= number <= most:
            raise ValueError(f"a whole number of {least} to {most}")
        return int(number)

    return read


_layers = _whole(1, 1024)
"""Numbers of layers. Every layer is looked for by its name, so that a huge number would take for ever."""


def _number(least: float = -math.inf, *, above: float = -math.inf) -> Reader:
    bound = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -math.inf else ""

    def read(value: object) -> float:
        number = _finite(value)
        if number is None or number < least or number <= above:
            raise ValueError(f"a finite number{bound}")
        return float(number) + 0.0  # -0.0 is 0.0

    return read


def _finite(value: object) -> int | float | None:
    """Returns a number that a float can hold, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(float(value)) else None
    except OverflowError:
        return None


def _flag(value: object) -> bool:
    """Reads true or false. null is false, as for the libraries, which test a flag's truth."""
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _only(wanted: object, why: str) -> Reader:
    """Reads a value that must be `wanted`."""

    def read(value: object) -> object:
        same = list(value) == wanted if isinstance(value, list | tuple) else value == wanted
        if not same or isinstance(value, bool) != isinstance(wanted, bool):
            raise _Unsupported(f"{json.dumps(wanted)}, {why}")
        return wanted

    return read


def _choice(names: Mapping[str, str], *, lower: bool = False) -> Reader:
    def read(value: object) -> str:
        name = value.lower() if lower and isinstance(value, str) else value
        if not isinstance(name, str) or name not in names:
            raise _Unsupported(f"one of {', '.join(names)}")
        return names[name]

    return read


def _list(item: Reader, what: str, *, empty: bool = False) -> Reader:
    def read(value: object) -> list[object]:
        if not isinstance(value, list | tuple) or not (value or empty):
            raise ValueError(f"a list of {what}")
        try:
            return [item(each) for each in value]
        except ValueError as error:
            raise type(error)(f"a list of {what}, each {error}") from error

    return read


def _or_none(reader: Reader) -> Reader:
    def read(value: object) -> object:
        return None if value is None else reader(value)

    return read


# Rotary position embeddings of language models

_ROPE_TYPES = ("default", "linear", "yarn")
_DEPENDS_ON_OTHERS = ("dynamic", "longrope")


def _rope(config: Mapping[str, object], head_dim: int, place: _Place, theta_default: object) -> tuple[Values, Values]:
    """Normalises the rope of a language model.

    transformers 4 has `rope_theta` and `rope_scaling` (with `type` or `rope_type`), transformers 5 `rope_parameters`.

    Returns:
        The `rope_parameters` of transformers 5, and what they do to the rotation. Both are equal for parameters that
        give the same table.
    """
    given, place = _rope_section(config, place)
    kind = _get(_without_null(given), ("rope_type", "type"), place)
    kind = "default" if kind is _REQUIRED else kind
    theta = _theta(config, given, place, theta_default)
    if kind == "default":
        return _default_rope(theta)
    if kind not in _ROPE_TYPES:
        why = " (with it, embeddings depend on the other prompts)" if kind in _DEPENDS_ON_OTHERS else ""
        got = _Text(f"{_shown(kind)}{why}")
        raise place.refusal("rope_type", f"one of {', '.join(_ROPE_TYPES)}", got, remedy=_OTHER_MODEL)
    present = {**_chosen(config, "partial_rotary_factor", "original_max_position_embeddings"), **_without_null(given)}
    _Value("partial_rotary_factor", _only(1.0, f"the whole head, with {kind}"), 1.0).of(present, place)
    if kind == "yarn":
        return _yarn(config, present, head_dim, theta, place)
    factor = _real(present, "factor", _REQUIRED, place, above=0.0)
    if factor == 1.0:
        return _default_rope(theta)
    values = {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    return values, values


def _rope_section(config: Mapping[str, object], place: _Place) -> tuple[Mapping[str, object], _Place]:
    """Returns the object with the rope parameters, {} if there is none, and its place."""
    sections = {
        name: config[name] for name in ("rope_parameters", "rope_scaling") if config.get(name) not in (None, {})
    }
    given = _get(sections, ("rope_parameters", "rope_scaling"), place)
    if given is _REQUIRED:
        return {}, place
    name = next(iter(sections))
    if not isinstance(given, Mapping):
        raise place.refusal(name, "an object", given)
    if nested := [key for key, value in given.items() if isinstance(value, Mapping)]:
        got = _Text(f"some for {listed(nested)}")
        raise place.refusal(name, "one set of parameters for all layers", got, remedy=_OTHER_MODEL)
    return given, place.inside(name)


def _theta(config: Mapping[str, object], given: Mapping[str, object], place: _Place, default: object) -> float:
    found = [source["rope_theta"] for source in (given, config) if source.get("rope_theta") is not None]
    if len(found) == 2 and found[0] != found[1]:
        raise place.refusal("rope_theta", f"{_shown(found[1])}, as the file says elsewhere", found[0])
    return _real({"rope_theta": found[0]} if found else {}, "rope_theta", default, place, above=0.0)


def _default_rope(theta: float) -> tuple[Values, Values]:
    values = {"rope_type": "default", "rope_theta": theta}
    return values, values


def _yarn(
    config: Mapping[str, object], given: Mapping[str, object], head_dim: int, theta: float, place: _Place
) -> tuple[Values, Values]:
    """Normalises YaRN (arXiv 2309.00071) as transformers' _compute_yarn_parameters reads it.

    The table is determined by the factor, the factor of the attention, and the dimensions between which the ramp from
    the original to the interpolated frequencies lies.
    """
    positions = _integer(_without_null(config), "max_position_embeddings", 32768, place)
    original = _integer(given, "original_max_position_embeddings", positions, place)
    factor = _real(given, "factor", positions / original, place, above=0.0)
    attention = _real(given, "attention_factor", _usual_attention_factor(given, factor, place), place, above=0.0)
    fast = _real(given, "beta_fast", 32.0, place, least=0.0) or 32.0
    slow = _real(given, "beta_slow", 1.0, place, least=0.0) or 1.0
    truncate = _Value("truncate", _flag, True).of(given, place)
    if theta <= 1.0:
        raise place.refusal("rope_theta", "a number above 1, as yarn needs", theta)
    low = _dimension_of(fast, original, head_dim, theta)
    high = _dimension_of(slow, original, head_dim, theta)
    if truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, head_dim - 1.0)
    if low > high:
        expected = "values between which dimensions lie"
        keys = "beta_fast, beta_slow and original_max_position_embeddings"
        raise place.refusal(keys, expected, _Text(f"{fast:g}, {slow:g} and {original}"))
    common: Values = {"rope_type": "yarn", "rope_theta": theta, "attention_factor": attention}
    if factor != 1.0 and low < head_dim // 2 - 1:
        ramp = {"beta_fast": fast, "beta_slow": slow, "original_max_position_embeddings": original}
        values = {**common, "factor": factor, **ramp, "truncate": truncate}
        return values, {**common, "factor": factor, "low": low, "high": high}
    # The frequencies are the default's.
    if attention == 1.0:
        return _default_rope(theta)
    return {**common, **_NO_RAMP}, {**common, "factor": 1.0, "low": 0.0, "high": 0.0}


_NO_RAMP: Values = {
    "factor": 1.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 1,
    "truncate": True,
}
"""Parameters of YaRN that leave the frequencies as they are and change the factor of the attention alone."""


def _usual_attention_factor(given: Mapping[str, object], factor: float, place: _Place) -> float:
    """Returns YaRN's factor of the attention where the file has none."""
    mscale, mscale_all_dim = (_real(given, name, 0.0, place) for name in ("mscale", "mscale_all_dim"))
    if mscale and mscale_all_dim:
        return _attention_scale(factor, mscale) / _attention_scale(factor, mscale_all_dim)
    return _attention_scale(factor, 1.0)


def _dimension_of(turns: float, positions: int, head_dim: int, theta: float) -> float:
    """Returns the dimension that makes so many turns over the positions."""
    return head_dim * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _attention_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _without_null(given: Mapping[str, object]) -> dict[str, object]:
    """Returns the entries that are not null. `truncate` stays: transformers reads its null as false."""
    return {name: value for name, value in given.items() if value is not None or name == "truncate"}


def _chosen(config: Mapping[str, object], *names: str) -> dict[str, object]:
    return {name: config[name] for name in names if config.get(name) is not None}


def _real(
    given: Mapping[str, object],
    name: str,
    default: object,
    place: _Place,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
) -> float:
    value: Any = _Value(name, _number(least, above=above), default).of(given, place)
    return float(value)


def _integer(given: Mapping[str, object], name: str, default: int, place: _Place) -> int:
    value: Any = _Value(name, _whole(), default).of(given, place)
    return int(value)


def _finish_text(theta_default: object, *, sections: bool) -> Check:
    """Returns the check of a Qwen3 language model. With `sections`, its positions have three axes (Qwen3-VL)."""

    def finish(config: Mapping[str, object], values: Values, identity: Values, place: _Place) -> None:
        heads, groups = values["num_attention_heads"], values["num_key_value_heads"]
        values["num_key_value_heads"] = identity["num_key_value_heads"] = groups = heads if groups is None else groups
        if heads % groups:
            raise place.refusal("num_key_value_heads", f"a divisor of num_attention_heads ({heads})", groups)
        if values["head_dim"] % 2:
            raise place.refusal("head_dim", "an even number", values["head_dim"])
        _refuse_windows(config, values["num_hidden_layers"], place)
        rope, rotation = _rope(config, values["head_dim"], place, theta_default)
        if sections:
            found = _sections(config, values["head_dim"] // 2, place)
            rope, rotation = {**rope, "mrope_section": found}, {**rotation, "mrope_section": found[1:]}
        values["rope_parameters"], identity["rope"] = rope, rotation
        if "original_max_position_embeddings" in rope:  # transformers warns where it does not fit the factor
            values["max_position_embeddings"] = rope["original_max_position_embeddings"]

    return finish


def _refuse_windows(config: Mapping[str, object], layers: int, place: _Place) -> None:
    """Refuses layers that do not attend to all tokens before them: zrelay's attention has no window."""
    kinds = config.get("layer_types")
    if kinds is None:
        if config.get("use_sliding_window") in (None, False) or config.get("sliding_window", 4096) is None:
            return
        first: Any = _Value("max_window_layers", _whole(0), 28).of(_without_null(config), place)
        if first < layers:
            expected = "false, since Z-Image's text encoder has no layers with a sliding window"
            got = _Text(f"{_shown(config['use_sliding_window'])} for layers from {first} (max_window_layers)")
            raise place.refusal("use_sliding_window", expected, got, remedy=_OTHER_MODEL)
        return
    if not isinstance(kinds, list):
        raise place.refusal("layer_types", "a list of full_attention for each layer", kinds)
    if any(kind != "full_attention" for kind in kinds):
        expected = "full_attention only, as Z-Image's text encoder has (and use_sliding_window false)"
        shown = _Text(listed(sorted({str(kind) for kind in kinds})))
        raise place.refusal("layer_types", expected, shown, remedy=_OTHER_MODEL)
    if len(kinds) != layers:
        raise place.refusal("layer_types", f"as many as num_hidden_layers ({layers})", _Text(str(len(kinds))))


def _sections(config: Mapping[str, object], frequencies: int, place: _Place) -> list[int]:
    """Returns mrope_section: how many frequencies turn by time, row and column (Qwen3VLTextRotaryEmbedding).

    Rows and columns take every third frequency, as far as there are some; time has the rest.
    """
    given, place = _rope_section(config, place)
    read = _list(_whole(0), "three whole numbers")
    value: Any = _Value("mrope_section", read, [24, 20, 20]).of(given, place)
    if len(value) != 3:
        raise place.refusal("mrope_section", "a list of three whole numbers", value)
    rows, columns = (min(value[axis], len(range(axis, frequencies, 3))) for axis in (1, 2))
    return [frequencies - rows - columns, rows, columns]


def _finish_transformer(config: Mapping[str, object], values: Values, identity: Values, place: _Place) -> None:
    del config, identity
    dim, heads, axes = values["dim"], values["n_heads"], values["axes_dims"]
    if dim % heads:
        raise place.refusal("n_heads", f"a divisor of dim ({dim})", heads)
    if len(axes) != 3 or any(axis % 2 for axis in axes) or sum(axes) != dim // heads:
        raise place.refusal("axes_dims", f"three even numbers of the sum {dim // heads} (dim / n_heads)", axes)
    if len(values["axes_lens"]) != 3:
        raise place.refusal("axes_lens", "3 lengths", values["axes_lens"])


def _finish_vae(config: Mapping[str, object], values: Values, identity: Values, place: _Place) -> None:
    del config
    widths, groups = values["block_out_channels"], values["norm_num_groups"]
    for name in ("down_block_types", "up_block_types"):
        if len(values[name]) != len(widths):
            expected = f"{len(widths)} blocks, as block_out_channels has"
            raise place.refusal(name, expected, _Text(f"{len(values[name])}"))
    if any(width % groups for width in widths):
        raise place.refusal("norm_num_groups", f"a divisor of block_out_channels ({widths})", groups)
    values["shift_factor"] = identity["shift_factor"] = values["shift_factor"] or 0.0


def _finish_qwen_vision(config: Mapping[str, object], values: Values, identity: Values, place: _Place) -> None:
    width, heads, depth = values["hidden_size"], values["num_heads"], values["depth"]
    if width % (4 * heads):
        raise place.refusal("num_heads", f"a divisor of hidden_size / 4 ({width} / 4)", heads)
    features = values["deepstack_visual_indexes"]
    if len(set(features)) != len(features) or any(block >= depth for block in features):
        raise place.refusal("deepstack_visual_indexes", f"different blocks below depth ({depth})", features)
    given, inside = _rope_section(config, place)
    kind = _get(_without_null(given), ("rope_type", "type"), inside)
    if kind not in (_REQUIRED, "axial", "default"):
        raise inside.refusal("rope_type", "axial", kind, remedy=_OTHER_MODEL)
    theta = _theta(config, given, inside, 10000.0)
    values["rope_parameters"] = identity["rope"] = {"rope_type": "axial", "rope_theta": theta}


def _finish_siglip(config: Mapping[str, object], values: Values, identity: Values, place: _Place) -> None:
    del config, identity
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise place.refusal("num_attention_heads", f"a divisor of hidden_size ({width})", heads)


def _finish_siglip_text(config: Mapping[str, object], values: Values, identity: Values, place: _Place) -> None:
    _finish_siglip(config, values, identity, place)
    width = values["projection_size"]
    values["projection_size"] = identity["projection_size"] = values["hidden_size"] if width is None else width


# Tables

_UNREAD = {
    "attention_dropout": "used in training",
    "initializer_range": "used in training",
    "pad_token_id": "embeddings of all ids are looked up alike",
    "bos_token_id": "the tokenizer adds tokens",
    "eos_token_id": "nothing is generated",
    "use_cache": "the services keep their own caches",
    "max_position_embeddings": "a limit; yarn reads it as its default",
}
_ENCODER = (
    _Value("vocab_size", _whole(), 151936),
    _Value("hidden_size", _whole(), 4096),
    _Value("intermediate_size", _whole(), 22016),
    _Value("num_hidden_layers", _layers, 32),
    _Value("num_attention_heads", _whole(), 32),
    _Value("num_key_value_heads", _or_none(_whole()), 32),
    _Value("head_dim", _whole(2), 128),
    _Value("hidden_act", _choice(_ACTIVATIONS), "silu"),
    _Value("rms_norm_eps", _number(0.0), 1e-6),
    _Value("attention_bias", _flag, False),
)
_TEXT_ENCODER = Table(
    _ENCODER,
    finish=_finish_text(10000.0, sections=False),
    added=("rope_parameters",),
    unread={
        **_UNREAD,
        "tie_word_embeddings": "the LM head does not run",
        "use_sliding_window": "windows are refused",
        "sliding_window": "windows are refused",
        "max_window_layers": "windows are refused",
        "layer_types": "windows are refused",
    },
)
_TRANSFORMER = Table(
    (
        _Value("all_patch_size", _only([2], "as Z-Image has"), [2]),
        _Value("all_f_patch_size", _only([1], "as Z-Image has"), [1]),
        _Value("in_channels", _whole(), 16),
        _Value("dim", _whole(), 3840),
        _Value("n_layers", _layers, 30),
        _Value("n_refiner_layers", _layers, 2),
        _Value("n_heads", _whole(), 30),
        _Value("norm_eps", _number(0.0), 1e-5),
        _Value("qk_norm", _only(True, "a transformer with query and key norms"), True),
        _Value("cap_feat_dim", _whole(), 2560),
        _Value("siglip_feat_dim", _or_none(_whole()), None),
        _Value("rope_theta", _number(above=0.0), 256.0),
        _Value("t_scale", _number(above=0.0), 1000.0),
        _Value("axes_dims", _list(_whole(), "whole numbers"), [32, 48, 48]),
        _Value("axes_lens", _list(_whole(), "whole numbers"), [1024, 512, 512], limit=True),
    ),
    finish=_finish_transformer,
    unread={"n_kv_heads": "every query head has its own keys"},
)
_DOWN = {name: name for name in ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")}
_UP = {name: name for name in ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")}
_VAE = Table(
    (
        _Value("in_channels", _whole(), 3),
        _Value("out_channels", _whole(), 3),
        _Value("down_block_types", _list(_choice(_DOWN), "block types"), ["DownEncoderBlock2D"]),
        _Value("up_block_types", _list(_choice(_UP), "block types"), ["UpDecoderBlock2D"]),
        _Value("block_out_channels", _list(_whole(), "whole numbers"), [64]),
        _Value("layers_per_block", _layers, 1),
        _Value("act_fn", _choice(_VAE_ACTIVATIONS, lower=True), "silu"),
        _Value("latent_channels", _whole(), 4),
        _Value("norm_num_groups", _whole(), 32),
        _Value("scaling_factor", _number(above=0.0), 0.18215),
        _Value("shift_factor", _or_none(_number()), None),
        _Value("use_quant_conv", _flag, True),
        _Value("use_post_quant_conv", _flag, True),
        _Value("mid_block_add_attention", _flag, True),
    ),
    finish=_finish_vae,
    unread={
        "sample_size": "the size of tiles, which are not used",
        "force_upcast": "the dtype of the service counts",
        "latents_mean": "Z-Image scales its latents by scaling_factor and shift_factor",
        "latents_std": "Z-Image scales its latents by scaling_factor and shift_factor",
    },
)
_SIGLIP = (
    _Value("hidden_size", _whole(), 768),
    _Value("intermediate_size", _whole(), 3072),
    _Value("num_hidden_layers", _layers, 12),
    _Value("num_attention_heads", _whole(), 12),
    _Value("hidden_act", _choice(_ACTIVATIONS), "gelu_pytorch_tanh"),
    _Value("layer_norm_eps", _number(0.0), 1e-6),
)
_SIGLIP_IMAGES = (
    _Value("num_channels", _only(3, "for RGB images"), 3),
    _Value("patch_size", _whole(), 16),
    _Value("vision_use_head", _flag, True),
)
_TRAINING = {"attention_dropout": _UNREAD["attention_dropout"]}
_QWEN_VISION = Table(
    (
        _Value("depth", _layers, 27, aliases=("num_hidden_layers",)),
        _Value("hidden_size", _whole(), 1152),
        _Value("hidden_act", _choice(_ACTIVATIONS), "gelu_pytorch_tanh"),
        _Value("intermediate_size", _whole(), 4304),
        _Value("num_heads", _whole(), 16, aliases=("num_attention_heads",)),
        _Value("in_channels", _only(3, "for RGB images"), 3),
        _Value("patch_size", _whole(), 16),
        _Value("spatial_merge_size", _whole(), 2),
        _Value("temporal_patch_size", _whole(), 2),
        _Value("out_hidden_size", _whole(), 3584),
        _Value("num_position_embeddings", _whole(), 2304),
        _Value("deepstack_visual_indexes", _list(_whole(0), "whole numbers", empty=True), [8, 16, 24]),
    ),
    finish=_finish_qwen_vision,
    added=("rope_parameters",),
    unread={"initializer_range": _UNREAD["initializer_range"]},
)
# transformers 4 and 5 have different defaults for the rope_theta of this model.
_QWEN_TEXT = Table(_ENCODER, finish=_finish_text(_REQUIRED, sections=True), added=("rope_parameters",), unread=_UNREAD)
TABLES: Mapping[str, Table] = MappingProxyType(
    {
        "text_encoder": _TEXT_ENCODER,
        "transformer": _TRANSFORMER,
        "vae": _VAE,
        "siglip_vision": Table(
            (*_SIGLIP, *_SIGLIP_IMAGES, _Value("image_size", _whole(), 224)),
            finish=_finish_siglip,
            unread=_TRAINING,
        ),
        "siglip2_vision": Table(
            (*_SIGLIP, *_SIGLIP_IMAGES, _Value("num_patches", _whole(), 256)),
            finish=_finish_siglip,
            unread=_TRAINING,
        ),
        "siglip_text": Table(
            (
                *_SIGLIP,
                _Value("vocab_size", _whole(), 32000),
                _Value("max_position_embeddings", _whole(), 64),
                _Value("projection_size", _or_none(_whole()), None),
            ),
            finish=_finish_siglip_text,
            unread={
                name: _UNREAD[name] for name in ("attention_dropout", "pad_token_id", "bos_token_id", "eos_token_id")
            },
        ),
        "qwen3_vl": Table(
            (
                _Value("image_token_id", _whole(0), 151655),
                _Value("video_token_id", _whole(0), 151656),
                _Value("vision_start_token_id", _whole(0), 151652),
                _Value("vision_end_token_id", _whole(0), 151653),
            ),
            parts={"text_config": _QWEN_TEXT, "vision_config": _QWEN_VISION},
            unread={"tie_word_embeddings": "the LM head does not run"},
        ),
    }
)
"""Kind of component -> its table. The text tower of SigLIP and SigLIP2 has one."""
