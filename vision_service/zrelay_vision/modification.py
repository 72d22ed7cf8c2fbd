"""What a conditioned prompt's fingerprint says of its making: all that changes the result, texts by digest alone."""

import hashlib
from dataclasses import replace

import torch

from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_vision.blend import BlendMode
from zrelay_vision.calls import ConditionCall
from zrelay_vision.conditioning import MODIFICATION, Reference
from zrelay_vision.identity import VisionFingerprint
from zrelay_vision.token_modes import States

_DIGITS = 12
"""Of a SHA-256: enough to tell two apart, few enough to be read."""


def marked(
    call: ConditionCall, states: States, made_by: VisionFingerprint, sha256: str, reference: Reference | None
) -> EncoderFingerprint:
    """The prompt's fingerprint with two more modifications: MODIFICATION and the particulars, in words `name=value`.

    `sha256` (hex) is of the image's file, "" for saved states, which go by the digest of their bytes instead: that
    holds what they were read with. `reference` are the statistics that were used, None where none were. A picture may
    be given away without its prompt, so of text, system prompt and weights only the beginning of a digest is told.
    """
    reading, options = call.states_options, call.options
    engine = f"{made_by.engine} {made_by.digest[:_DIGITS]}"
    words = [f"{options.said}; {engine} layer={made_by.hidden_layer} {states.tokens}"]
    if sha256:
        words.append(f"image={sha256[:_DIGITS]}")
        if reading.text and states.tokens.has_text:  # else what stands behind the image is not read
            words.append(f"text={_digest(reading.text.encode('utf-8', 'replace'))}")
        if reading.system_prompt:
            words.append(f"system_prompt={_digest(reading.system_prompt.encode('utf-8', 'replace'))}")
    else:
        words.append(f"states={_digest(_bytes(states.hidden_states))}")
    if options.blend is BlendMode.TOKEN_WEIGHTS:
        words.append(f"token_weights={_digest(_bytes(torch.tensor(options.token_weights)))}")
    if reference is not None:
        words.append(f"reference={_digest(_bytes(torch.stack([reference.mean, reference.std])))}")
    told = (MODIFICATION, " ".join(words))
    return replace(call.fingerprint, modifications=(*call.fingerprint.modifications, *told))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
