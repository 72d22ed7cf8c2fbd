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
The tables [generate], [encode], [encode_images] and [condition] hold defaults of requests. The variables are
`ZRELAY_ENCODER`, `ZRELAY_VISION` and `ZRELAY_GENERATOR` (endpoints, several joined by commas), `ZRELAY_PROFILE`, and
`ZRELAY_<ROLE or TABLE>_<KEY>` for every other key, for example `ZRELAY_GENERATE_WIDTH`.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from zrelay_shared import texts
from zrelay_shared.errors import InvalidArgument, invalid, listed
from zrelay_shared.paths import CONFIG_REMEDY
from zrelay_shared.service.roles import SERVICE_CONFIGS, ServiceConfig
from zrelay_shared.service.settings import Setting, Value, describe, setting

ROLES = tuple(SERVICE_CONFIGS)
DEFAULT_PROFILE = "default"
"""The profile that is used where none is named, if the file has one of that name."""
_OTHER_VARIABLES = ("ZRELAY_PROFILE", "ZRELAY_CONFIG", "ZRELAY_STATE")
_LEAST_LIKENESS = 0.6
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
class GenerateConfig:
    """How images are generated: options of `zrelay generate` and of `generate` in the client library.

    None leaves the choice to the generator.
    """

    width: int | None = setting(
        None, group="Image", default_text="the checkpoint's", help="Width of the image in pixels.", example=1024
    )
    height: int | None = setting(
        None, group="Image", default_text="the checkpoint's", help="Height of the image in pixels.", example=1024
    )
    num_inference_steps: int | None = setting(
        None, group="Image", default_text="the checkpoint's", help="Number of denoising steps.", example=8
    )
    seed: int | None = setting(
        None, group="Image", default_text="random", help="Seed of the first image; image i has seed + i.", example=7
    )
    num_images: int | None = setting(
        None, group="Image", default_text="1", help="Images of one job; their files get -1, -2, ...", example=1
    )
    shift: float | None = setting(
        None, group="Image", default_text="the checkpoint's", help="Shift of the noise schedule.", example=3.0
    )
    sigmas: tuple[float, ...] | None = setting(
        None,
        group="Image",
        default_text="from steps and shift",
        help="Noise levels, falling from at most 1 to above 0, in place of the number of steps.",
        example=(1.0, 0.75, 0.5, 0.25),
    )
    deterministic: bool | None = setting(
        None,
        group="Image",
        default_text="off",
        help="Make the image the same bit for bit, whatever else runs at the same time; slower.",
        example=True,
    )
    guidance_scale: float | None = setting(
        None,
        group="Guidance",
        default_text="the checkpoint's",
        help="Classifier-free guidance; 0 is off.",
        example=0.0,
    )
    cfg_normalization: float | None = setting(
        None,
        group="Guidance",
        default_text="0",
        help="Largest norm of the guided prediction, as a multiple of the unguided one's; 0 is off.",
        example=0.0,
    )
    cfg_truncation: float | None = setting(
        None,
        group="Guidance",
        default_text="1",
        help="Guidance stops once 1 - sigma exceeds this; 1 is never.",
        example=1.0,
    )
    skip_layer_guidance_scale: float | None = setting(
        None, group="Guidance", default_text="off", help="Skip-layer guidance; 2.5 is usual.", example=2.5
    )
    skip_guidance_layers: tuple[int, ...] | None = setting(
        None,
        group="Guidance",
        default_text="7 to 12",
        help="Transformer blocks that skip-layer guidance skips.",
        example=(7, 8, 9, 10, 11, 12),
    )
    skip_layer_guidance_start: float | None = setting(
        None,
        group="Guidance",
        default_text="0.05",
        help="Share of the steps after which skip-layer guidance starts.",
        example=0.05,
    )
    skip_layer_guidance_stop: float | None = setting(
        None,
        group="Guidance",
        default_text="0.5",
        help="Share of the steps after which skip-layer guidance stops.",
        example=0.5,
    )
    strength: float | None = setting(
        None,
        group="Reference images",
        default_text="0.6",
        help="Share of the schedule that runs on --image, above 0 to 1.",
        example=0.6,
    )
    format: str | None = setting(
        None,
        group="Output",
        choices=("png", "jpeg", "webp"),
        default_text="by the file's suffix, else png",
        help="Format of the image file.",
        example="png",
    )
    quality: int | None = setting(
        None,
        group="Output",
        default_text="the generator's",
        help="Quality of jpeg and webp files, 1 to 100.",
        example=95,
    )
    provenance: bool | None = setting(
        None,
        group="Output",
        default_text="on",
        help="Write into the image file how it was made.",
        example=True,
    )
    keep_prompt: bool | None = setting(
        None,
        group="Output",
        flags=("--prompt-in-file",),
        default_text="on",
        help="Write the prompt into the file, too.",
        example=True,
    )
    labels: tuple[str, ...] | None = setting(
        None,
        group="Output",
        flags=("--label",),
        pairs=True,
        help="A label that is written into the image file; repeat it for more.",
        example=("project=foxes",),
    )
    preview_every: int | None = setting(
        None, group="Output", default_text="1", help="Steps from one preview to the next, with --preview.", example=1
    )
    preview_max_side: int | None = setting(
        None,
        group="Output",
        default_text="256",
        help="Largest side of a preview in pixels.",
        example=256,
    )
    priority: str | None = setting(
        None,
        group="Many images",
        choices=("interactive", "normal", "batch"),
        default_text="interactive for one image, normal for more",
        help="Urgency of the jobs at the generator.",
        example="normal",
    )
    timeout_s: float | None = setting(
        None,
        group="Connection",
        flags=("--timeout",),
        unit="seconds",
        default_text="1800 seconds",
        help="Time for one call, waiting included.",
        example=1800,
    )


@dataclass(frozen=True, slots=True)
class EncodeConfig:
    """How prompts are encoded: options of `zrelay encode`, of `zrelay generate` and of `encode` in the client library.

    None leaves the choice to the encoder.
    """

    system_prompt: str | None = setting(
        None,
        group="Prompt",
        help="System turn before the prompt (not offered yet).",
        example="Describe the image.",
    )
    assistant_prefill: str | None = setting(
        None,
        group="Prompt",
        help="Beginning of the answer after the prompt (not offered yet).",
        example="The image shows",
    )
    think_mode: str | None = setting(
        None,
        group="Prompt",
        choices=("none", "empty", "content"),
        default_text="none",
        help="Think block after the prompt: none, an empty one, or one with --thinking-content.",
        example="none",
    )
    thinking_content: str | None = setting(
        None,
        group="Prompt",
        help="Text of the think block.",
        example="A fox with red fur.",
    )
    template: str | None = setting(
        None,
        group="Prompt",
        metavar="NAME",
        default_text="the checkpoint's",
        help="Name of another chat template (not offered yet).",
        example="default",
    )
    quote_stripping: str | None = setting(
        None,
        group="Prompt",
        choices=("none", "json_keys", "all"),
        default_text="none",
        help="Double quotes to remove from the prompt (not offered yet).",
        example="none",
    )
    clean_whitespace: bool | None = setting(
        None,
        group="Prompt",
        default_text="off",
        help="Trim the prompt and collapse runs of blanks (not offered yet).",
        example=True,
    )
    hidden_layer: int | None = setting(
        None,
        group="Prompt",
        default_text="the encoder's",
        help="Layer whose output becomes the embeddings, counted from the end; -2 is what Z-Image was trained with.",
        example=-2,
    )
    text_limit: int | None = setting(
        None,
        group="Prompt",
        unit="tokens",
        default_text="the generator's",
        help="Longest prompt.",
        example=512,
    )
    long_prompt_mode: str | None = setting(
        None,
        group="Prompt",
        choices=("truncate", "interpolate", "pool", "attention_pool", "refuse"),
        default_text="truncate",
        help="Treatment of a longer prompt; interpolate, pool and attention_pool are not offered yet.",
        example="refuse",
    )
    dtype: str | None = setting(
        None,
        group="Prompt",
        choices=("bf16", "f16", "f32"),
        default_text="bf16",
        help="Data type of the embeddings.",
        example="bf16",
    )
    pad_to: int | None = setting(
        None,
        group="Prompt",
        unit="tokens",
        default_text="no padding",
        help="Pad shorter prompts to this length.",
        example=512,
    )
    bypass_cache: bool | None = setting(
        None,
        group="Prompt",
        default_text="off",
        help="Encode the prompt again although its embeddings are cached (not offered yet).",
        example=True,
    )
    deterministic: bool | None = setting(
        None,
        group="Prompt",
        default_text="off",
        help="Make the embeddings the same bit for bit, whatever else runs at the same time; slower.",
        example=True,
    )


_STATES: dict[str, Any] = {"group": "Reference images", "default_text": "the server's"}


@dataclass(frozen=True, slots=True)
class EncodeImagesConfig:
    """How images are encoded: options of `zrelay vision encode` and of `encode_images` in the client library.

    None leaves the choice to the vision service.
    """

    hidden_layer: int | None = setting(
        None,
        **_STATES,
        flags=("--layer", "--hidden-layer"),
        help="Hidden layer of Qwen3-VL, counted from the end.",
        example=-2,
    )
    tokens: str | None = setting(
        None,
        group="Reference images",
        default_text="full",
        choices=("full", "text_only", "image_only", "image_no_markers"),
        help="Tokens of Qwen3-VL to keep.",
        example="full",
    )
    text: str | None = setting(
        None,
        group="Reference images",
        help="Text that Qwen3-VL reads after the image.",
        example="a red fox",
    )
    system_prompt: str | None = setting(
        None,
        group="Reference images",
        help="System turn that Qwen3-VL reads before the image.",
        example="Describe the image.",
    )
    target_area: int | None = setting(
        None,
        group="Reference images",
        unit="pixels",
        default_text="the processor's own size",
        help="Area to which images are resized: width times height of the image to be generated.",
        example=1048576,
    )
    dtype: str | None = setting(
        None,
        group="Reference images",
        choices=("bf16", "f16", "f32"),
        default_text="bf16",
        help="Data type of the embeddings.",
        example="bf16",
    )


@dataclass(frozen=True, slots=True)
class ConditionConfig:
    """How a reference image is blended into a prompt: options of `zrelay generate --reference`, of
    `zrelay vision condition` and of `condition_prompt` in the client library.

    None leaves the choice to the vision service.
    """

    alpha: float | None = setting(
        None,
        group="Reference images",
        default_text="0.3",
        help="Share of the reference in the prompt, 0 to 1.",
        example=0.3,
    )
    blend: str | None = setting(
        None,
        group="Reference images",
        choices=(
            "interpolate",
            "linear",
            "adain",
            "adain_per_dim",
            "graduated",
            "slerp",
            "style_delta",
            "token_weights",
        ),
        default_text="interpolate",
        help="Method of blending.",
        example="interpolate",
    )
    normalization: str | None = setting(
        None,
        group="Reference images",
        choices=("none", "token_rms", "global", "per_dim", "hybrid"),
        default_text="token_rms",
        help="Normalization of the reference's states before they are blended.",
        example="token_rms",
    )
    outlier_mask: str | None = setting(
        None,
        group="Reference images",
        choices=("none", "zero", "clamp", "scale"),
        default_text="none",
        help="Treatment of dimensions whose deviation is far above that of prompts.",
        example="none",
    )
    outlier_threshold: float | None = setting(
        None,
        group="Reference images",
        default_text="10",
        help="Ratio of deviations above which a dimension is an outlier.",
        example=10.0,
    )
    curve: str | None = setting(
        None,
        group="Reference images",
        choices=("linear", "ease_in", "ease_out"),
        default_text="linear",
        help="Curve of the share over the tokens, for --blend graduated.",
        example="linear",
    )
    token_weights: tuple[float, ...] | None = setting(
        None,
        group="Reference images",
        help="Weight of each token of the prompt, 0 to 1, for --blend token_weights.",
        example=(0.0, 0.5, 1.0),
    )
    hidden_layer: int | None = setting(
        None,
        **_STATES,
        flags=("--vision-layer",),
        help="Hidden layer of Qwen3-VL, counted from the end.",
        example=-2,
    )
    tokens: str | None = setting(
        None,
        group="Reference images",
        flags=("--vision-tokens",),
        default_text="full",
        choices=("full", "text_only", "image_only", "image_no_markers"),
        help="Tokens of Qwen3-VL to blend.",
        example="full",
    )
    text: str | None = setting(
        None,
        group="Reference images",
        flags=("--vision-text",),
        help="Text that Qwen3-VL reads after the image.",
        example="a red fox",
    )
    system_prompt: str | None = setting(
        None,
        group="Reference images",
        flags=("--vision-system-prompt",),
        help="System turn that Qwen3-VL reads before the image.",
        example="Describe the image.",
    )


REQUEST_CONFIGS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "generate": GenerateConfig,
        "encode": EncodeConfig,
        "encode_images": EncodeImagesConfig,
        "condition": ConditionConfig,
    }
)
"""Sections that hold defaults of requests, as tables outside of any profile, and their classes."""
SECTIONS = (*ROLES, *REQUEST_CONFIGS)


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
        generate, encode, encode_images, condition: Defaults of requests.
        origins: Dotted key -> origin of what is no default, for example `{"encoder.endpoint": "env ZRELAY_ENCODER"}`.
        settings: Every setting of every section with its value, defaults included.
    """

    profile: str | None = None
    profiles: tuple[str, ...] = ()
    encoder: EndpointConfig = EndpointConfig()
    vision: EndpointConfig = EndpointConfig()
    generator: EndpointConfig = EndpointConfig()
    generate: GenerateConfig = GenerateConfig()
    encode: EncodeConfig = EncodeConfig()
    encode_images: EncodeImagesConfig = EncodeImagesConfig()
    condition: ConditionConfig = ConditionConfig()
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    settings: tuple[EffectiveSetting, ...] = field(default=(), compare=False, repr=False)

    def service(self, role: str) -> EndpointConfig:
        """Returns where the service of a role is. Raises InvalidArgument (ROLE_INVALID)."""
        checked_role(role)
        return {"encoder": self.encoder, "vision": self.vision, "generator": self.generator}[role]


def checked_role(role: str) -> str:
    """Returns the name of a role.

    Raises:
        InvalidArgument: ROLE_INVALID, there is no such role; the message names those there are, and the nearest.
    """
    if role not in ROLES:
        remedy = _nearest(role, ROLES, cutoff=0.5).removeprefix("; ")
        raise invalid("role", f"one of {', '.join(ROLES)}", repr(role), remedy=remedy)
    return role


def load(
    file: Path, environ: Mapping[str, str], *, profile: str | None = None, flags: Mapping[str, Any] | None = None
) -> Config:
    """Reads the configuration as a client needs it, and checks the settings of all services.

    Args:
        file: The TOML file, which need not exist.
        environ: Environment variables.
        profile: The profile that a flag names.
        flags: Dotted key -> value of a flag, for example `encoder.endpoint`; None where the flag was not given, and
            the word `none` for the value None.

    Raises:
        InvalidArgument: CONFIG_INVALID; the message names the file, or the variable, and the key.
        OSError: The file cannot be read.
    """
    sources = _Sources.open(file, environ, profile, flags or {})
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
) -> S:
    """Reads the settings of a service.

    Args:
        kind: The settings class.
        file, environ, profile, flags: As in `load`.

    Raises:
        InvalidArgument: CONFIG_INVALID as in `load`; SETTING_MISSING where a required setting has no value.
        OSError: The file cannot be read.
    """
    sources = _Sources.open(file, environ, profile, flags or {})
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
    """Returns the settings of a section: of a role what clients and the service read, or the defaults of requests."""
    if section in REQUEST_CONFIGS:
        return describe(REQUEST_CONFIGS[section], section)
    return describe(EndpointConfig, section) + describe(SERVICE_CONFIGS[section], section)


def read(file: Path) -> dict[str, Any]:
    """Reads and checks the tables of a file; returns an empty dict where it does not exist. Raises as `load`."""
    try:
        data = file.read_bytes() if file.exists() else b""
    except OSError as error:
        message = f"the configuration cannot be read ({error.strerror}); {CONFIG_REMEDY}"
        raise OSError(error.errno, message, str(file)) from error
    try:
        tables = tomllib.loads(texts.decode(data, f"{file}"))
    except texts.NotText as error:
        raise _refusal(f"{error}") from error
    except tomllib.TOMLDecodeError as error:
        raise _refusal(f"{file}: not valid TOML: {error}") from error
    _check_keys(file, "the top level", tables, ("default_profile", "profile", *REQUEST_CONFIGS))
    if not isinstance(tables.get("default_profile", ""), str):
        raise _refusal(f"{file}: default_profile: expected a string, got {tables['default_profile']!r}")
    for name, roles in _table(file, "profile", tables.get("profile", {})).items():
        _check_keys(file, f"[profile.{name}]", _table(file, f"profile.{name}", roles), ROLES)
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
    def open(cls, file: Path, environ: Mapping[str, str], profile: str | None, flags: Mapping[str, Any]) -> "_Sources":
        """Reads the file and chooses the profile. Raises as `load`."""
        tables = read(file)
        profiles = tables.get("profile", {})
        name, origin = _choose_profile(file, tables, environ, profile)
        if name is not None and name not in profiles:
            known = f"known are {listed(sorted(profiles))}" if profiles else "the file has none"
            place = "--profile" if origin == "flag" else origin
            raise _refusal(f"{place}: no profile {name!r} in {file}; {known}{_nearest(name, profiles)}")
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
    return InvalidArgument(message, field="config", reason="CONFIG_INVALID")
