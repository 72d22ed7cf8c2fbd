"""Names the options of the client in refusals of services, which name the fields of requests.

A service refuses `spec.sampling.width` or `prompts[0].text`. Callers of the library know `width` and `prompt`. The
message and `field` of a refusal get the name of the option; `metadata["contract_field"]` keeps the path of the field.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from zrelay_shared.errors import ZrelayError

CONTRACT_FIELD = "contract_field"
"""Key of the metadata that holds the path of the field in the request."""
_INDEX = re.compile(r"\[\d+\]")
_PATH = re.compile(r"\b[a-z_]+(?:\[\d+\])?(?:\.[a-z_]+(?:\[\d+\])?)+")
"""A path of more than one part, so that no word of a sentence is taken for one."""


@dataclass(frozen=True, slots=True)
class OptionNames:
    """The names of the fields of one kind of request. Paths have no indices; what is below a path has its name.

    Attributes:
        fields: Path of a field -> the argument or option that sets it.
        groups: Path of a message whose fields have names of their own -> the option to which a refusal of the whole
            message points.
        lists: Options of several values, whose names keep the index.
        exact: Path with its indices -> name, where the index decides about the name.
    """

    fields: Mapping[str, str]
    groups: Mapping[str, str] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    exact: Mapping[str, str] = field(default_factory=dict)

    def of(self, path: str) -> str | None:
        """Returns the name of a field or of a group of fields, None for a path that is not known."""
        if (name := self._whole(path)) is not None:
            return name
        parts = path.split(".")
        for count in range(len(parts) - 1, 0, -1):
            if (name := self.fields.get(_plain(".".join(parts[:count])))) is not None:
                return self._indexed(name, ".".join(parts[:count]))
        return None

    def in_text(self, text: str) -> str:
        """Returns a text in which the paths of fields are replaced by their names."""
        return _PATH.sub(lambda found: self._whole(found[0]) or found[0], text)

    def _whole(self, path: str) -> str | None:
        """Returns the name of exactly this path."""
        if path in self.exact:
            return self.exact[path]
        name = self.fields.get(_plain(path)) or self.groups.get(_plain(path))
        return None if name is None else self._indexed(name, path)

    def _indexed(self, name: str, path: str) -> str:
        """Returns the name with the last index of the path, if the option has several values."""
        indices = _INDEX.findall(path)
        return f"{name}{indices[-1]}" if indices and name in self.lists else name


def _plain(path: str) -> str:
    """Returns a path without its indices."""
    return _INDEX.sub("", path)


def _same(*names: str) -> dict[str, str]:
    """Returns fields whose options have the same names."""
    return dict(zip(names, names, strict=True))


def _below(path: str, *names: str) -> dict[str, str]:
    """Returns fields of the message at `path` whose options have the same names."""
    return {f"{path}.{name}": name for name in names}


_STATES = _below("states_options", "hidden_layer", "tokens", "text", "system_prompt")
_BLENDING = _below(
    "options", "alpha", "blend", "normalization", "outlier_mask", "outlier_threshold", "curve", "token_weights"
)
ENCODE_IMAGES = OptionNames(
    _same("images", "engine", "target_area", "dtype") | _STATES, {"states_options": "options"}, ("images",)
)
SCORE_IMAGES = OptionNames(_same("images", "texts"), lists=("images", "texts"))
CONDITION_PROMPT = OptionNames(
    {"prompt_embeds": "embeds", "image": "image", "states": "image"} | _STATES | _BLENDING,
    {"states_options": "options", "options": "options"},
)
REFERENCE = OptionNames(
    {"prompt_embeds": "prompt", "image": "reference", "states": "reference"} | _STATES | _BLENDING,
    {"states_options": "conditioning", "options": "conditioning"},
)
"""As CONDITION_PROMPT, where `generate` sends the request."""
GENERATE = OptionNames(
    _same("request_id")
    | _below("spec", "prompt", "negative_prompt", "priority", "deterministic")
    | _below(
        "spec.sampling",
        "width",
        "height",
        "num_inference_steps",
        "guidance_scale",
        "cfg_normalization",
        "cfg_truncation",
        "shift",
        "sigmas",
        "seed",
        "num_images",
    )
    | _below("spec.image_to_image", "image", "strength")
    | {
        "spec.skip_layer_guidance.scale": "skip_layer_guidance_scale",
        "spec.skip_layer_guidance.layers": "skip_guidance_layers",
        "spec.skip_layer_guidance.start": "skip_layer_guidance_start",
        "spec.skip_layer_guidance.stop": "skip_layer_guidance_stop",
        "spec.omni.images": "omni",
        "spec.omni.siglip_embeds": "omni",
        "spec.omni.siglip_contents": "omni",
        "spec.preview.every_steps": "preview_every",
        "spec.preview.max_side": "preview_max_side",
        "spec.output.omit_provenance": "provenance",
        "spec.provenance.prompt": "prompt",
        "spec.provenance.negative_prompt": "negative_prompt",
        "spec.provenance.labels": "labels",
    }
    | _below("spec.output", "format", "quality"),
    {
        "spec": "options",
        "spec.sampling": "options",
        "spec.image_to_image": "image",
        "spec.skip_layer_guidance": "skip_layer_guidance_scale",
        "spec.omni": "omni",
        "spec.preview": "preview_every",
        "spec.output": "format",
        "spec.provenance": "provenance",
    },
    ("omni",),
)
"""Of Generate and SubmitJob."""
_PROMPT = _below(
    "prompts",
    "system_prompt",
    "assistant_prefill",
    "think_mode",
    "thinking_content",
    "template",
    "quote_stripping",
    "clean_whitespace",
    "image_count",
) | {"prompts.text": "prompts"}
_ENCODING = _below(
    "options", "hidden_layer", "text_limit", "long_prompt_mode", "dtype", "pad_to", "bypass_cache", "deterministic"
)
ENCODE_PROMPTS = OptionNames(_PROMPT | _ENCODING, {"prompts": "prompts", "options": "options"}, ("prompts",))


def encode_names(prompts: int, *, negative: bool) -> OptionNames:
    """Returns the names for a request of some prompts, after which a negative prompt may follow."""
    exact = {"prompts[0]": "prompt", "prompts[0].text": "prompt"} if prompts == 1 else {}
    if negative:
        exact |= {f"prompts[{prompts}]": "negative_prompt", f"prompts[{prompts}].text": "negative_prompt"}
    return replace(ENCODE_PROMPTS, exact=exact)


@contextlib.contextmanager
def option_names(names: OptionNames) -> Iterator[None]:
    """Within this context, an error of a service names options of the library in place of fields of the contract.

    Raises:
        ZrelayError: The error of the service, with these names.
    """
    try:
        yield
    except ZrelayError as error:
        name = names.of(error.field) if error.field else None
        if name is None:
            raise
        raise type(error)(
            names.in_text(re.sub(rf"^{re.escape(error.field)}(?=:)", name, error.message)),
            reason=error.reason,
            field=name,
            metadata={**error.metadata, CONTRACT_FIELD: error.field},
            retry_after_s=error.retry_after_s,
        ) from error
