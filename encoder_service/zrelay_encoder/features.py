"""What this encoder can do of the contract, told by GetInfo, and the refusal of the rest."""

from dataclasses import dataclass

from zrelay_shared.errors import FeatureMissing
from zrelay_shared.limits import MAX_OMNI_IMAGES


@dataclass(frozen=True, slots=True)
class Feature:
    """Whether a named capability is there; `note` says under which restriction, or what to do without it."""

    name: str
    available: bool
    note: str = ""


FEATURES = (
    Feature("encode.think", True),
    Feature("encode.negative", True, "one more prompt of the call; allow_empty for an empty one"),
    Feature("encode.layer", True, "those that the loaded blocks reach (--hidden-layer)"),
    Feature("encode.long_prompt.truncate", True),
    Feature("encode.long_prompt.refuse", True),
    Feature("encode.pad_to", True, "pads stand behind the prompt and are attended to as any token"),
    Feature("encode.deterministic", True, "prompts of a call run one by one"),
    Feature("encode.omni", True, f"image_count of 1 to {MAX_OMNI_IMAGES}; without think block and padding"),
    Feature("encode.conversation", False, "send the user's turn as the prompt's text"),
    Feature("encode.system_prompt", False),
    Feature("encode.prefill", False),
    Feature("encode.template", False),
    Feature("encode.quote_stripping", False, "send the prompt without the quotes"),
    Feature("encode.clean_whitespace", False, "send the prompt trimmed"),
    Feature("encode.long_prompt.interpolate", False, "use truncate or refuse"),
    Feature("encode.long_prompt.pool", False, "use truncate or refuse"),
    Feature("encode.long_prompt.attention_pool", False, "use truncate or refuse"),
    Feature("encode.layer_weights", False, "use a single hidden_layer"),
    Feature("encode.steering", False),
    Feature("encode.cache", False, "every call computes"),
)
_BY_NAME = {feature.name: feature for feature in FEATURES}


def missing(name: str, field: str) -> FeatureMissing:
    """The refusal of request field `field`, which needs the capability `name`."""
    note = _BY_NAME[name].note
    return FeatureMissing(
        f"{field}: this encoder cannot do {name}{f': {note}' if note else ''}; leave the field out, or use an encoder "
        "whose GetInfo lists it as available",
        field=field,
        metadata={"feature": name},
    )
