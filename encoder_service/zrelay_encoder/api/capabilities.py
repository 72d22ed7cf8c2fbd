"""The capabilities that GetInfo lists, and the refusal of those that this encoder does not have."""

from zrelay.v1.info_pb2 import Feature
from zrelay_shared.errors import FeatureMissing
from zrelay_shared.limits import MAX_OMNI_IMAGES


def _available(name: str, note: str = "") -> Feature:
    return Feature(name=name, available=True, note=note)


def _unavailable(name: str, note: str = "") -> Feature:
    return Feature(name=name, available=False, note=note)


CAPABILITIES = (
    _available("encode.think"),
    _available("encode.negative", "one more prompt of the call; allow_empty for an empty one"),
    _available("encode.layer", "layers that the loaded blocks reach (--hidden-layer)"),
    _available("encode.long_prompt.truncate"),
    _available("encode.long_prompt.refuse"),
    _available("encode.pad_to", "pad tokens follow the prompt and are attended to like other tokens"),
    _available("encode.deterministic", "prompts of a call run one by one"),
    _available("encode.omni", f"image_count of 1 to {MAX_OMNI_IMAGES}; without think block and padding"),
    _unavailable("encode.conversation", "send the user's turn as the prompt's text"),
    _unavailable("encode.system_prompt"),
    _unavailable("encode.prefill"),
    _unavailable("encode.template"),
    _unavailable("encode.quote_stripping", "send the prompt without the quotes"),
    _unavailable("encode.clean_whitespace", "send the prompt trimmed"),
    _unavailable("encode.long_prompt.interpolate", "use truncate or refuse"),
    _unavailable("encode.long_prompt.pool", "use truncate or refuse"),
    _unavailable("encode.long_prompt.attention_pool", "use truncate or refuse"),
    _unavailable("encode.layer_weights", "use a single hidden_layer"),
    _unavailable("encode.steering"),
    _unavailable("encode.cache", "every call computes"),
)
"""Every capability of the contract. `note` states a restriction, or what to do without the capability."""
_NOTES = {capability.name: capability.note for capability in CAPABILITIES}


def unavailable(name: str, field: str) -> FeatureMissing:
    """Returns the error for a request field that needs the unavailable capability `name`."""
    note = _NOTES[name]
    return FeatureMissing(
        f"{field}: this encoder does not support {name}: {note or 'leave it out'}",
        field=field,
        metadata={"feature": name},
    )
