"""Prompt embeddings as tensors of torch or arrays of numpy, and back. The libraries are imported on first use."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.generation_pb2 import GenerationSpec
from zrelay_shared import fingerprint
from zrelay_shared.errors import FeatureMissing, InvalidArgument
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.omni import segment_count
from zrelay_shared.tensors import FLOATS, check
from zrelay_shared.wire import Parcel

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_FAMILY = "qwen3"
"""The family of every text encoder of Z-Image."""


def torch_segments(parcel: Parcel[Any], message: PromptEmbeds) -> "list[torch.Tensor]":
    """Returns a copy of each segment of a prompt as a CPU tensor [T, width].

    Raises:
        FeatureMissing: torch is not installed.
        InvalidArgument, PayloadCorrupt: The embeddings are damaged.
    """
    try:
        from zrelay_shared.torch_tensors import from_wire
    except ModuleNotFoundError as error:
        raise _not_installed("torch") from error
    tensors = (segment.prompt_embeds for segment in message.segments)
    return [from_wire(parcel, tensor, field="prompt_embeds", rank=2).clone() for tensor in tensors]


def numpy_segments(parcel: Parcel[Any], message: PromptEmbeds) -> "list[NDArray[np.float32]]":
    """Returns a copy of each segment of a prompt as a float32 array [T, width].

    numpy has no bfloat16. Every value of bfloat16 and float16 is a value of float32.

    Raises:
        FeatureMissing: numpy is not installed.
        InvalidArgument, PayloadCorrupt: The embeddings are damaged.
    """
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        raise _not_installed("numpy") from error
    arrays = []
    for segment in message.segments:
        tensor = segment.prompt_embeds
        view = check(tensor, parcel.bytes_of(tensor), field="prompt_embeds", rank=2)
        if view.dtype == "BF16":  # the upper half of a float32
            values = (np.frombuffer(view.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(view.data, "<f2" if view.dtype == "F16" else "<f4").astype(np.float32)
        arrays.append(values.reshape(view.shape))
    return arrays


def spec_of_torch(
    prompt_embeds: Any,
    negative_prompt_embeds: Any,
    made_by: EncoderFingerprint | None,
    prompt: str | None,
    negative_prompt: str | None,
) -> Parcel[GenerationSpec]:
    """Returns a GenerationSpec with a copy of tensors. Arguments and errors as `Embeds.from_torch`."""
    try:
        from zrelay_shared.torch_tensors import FLOAT_DTYPES, to_wire
    except ModuleNotFoundError as error:
        raise _not_installed("torch") from error
    dtypes = tuple(FLOAT_DTYPES.values())
    spec = Parcel(GenerationSpec())
    message = spec.message
    parts = [("prompt_embeds", prompt_embeds, message.prompt)]
    if negative_prompt_embeds is not None:
        parts.append(("negative_prompt_embeds", negative_prompt_embeds, message.negative_prompt))
    for name, given, part in parts:
        segments = _segments(name, given)
        made_by = made_by or EncoderFingerprint(_FAMILY, segments[0].shape[1])
        for tensor in segments:
            if tensor.dtype not in dtypes or tensor.shape[1] != made_by.width or not tensor.shape[0]:
                expected = f"tensors [T, {made_by.width}] of {', '.join(FLOATS)}"
                raise _invalid(name, expected, f"{list(tensor.shape)} of {tensor.dtype}")
            to_wire(spec, part.prompt_embeds.segments.add().prompt_embeds, tensor.detach().clone())
        tokens = sum(tensor.shape[0] for tensor in segments)
        part.prompt_embeds.fingerprint.CopyFrom(fingerprint.to_message(made_by))
        part.prompt_embeds.report.formatted_tokens = part.prompt_embeds.report.token_count = tokens
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if text is not None:
            setattr(message.provenance, name, text)
    return spec


def _segments(name: str, given: Any) -> "list[torch.Tensor]":
    """Returns the segments [T, width] of one prompt: one for an ordinary prompt, several for Z-Image Omni."""
    import torch

    prompt = given[0] if isinstance(given, Sequence) and len(given) == 1 else given
    if isinstance(prompt, torch.Tensor):
        segments = [prompt[0] if prompt.dim() == 3 and prompt.shape[0] == 1 else prompt]
    else:  # the segments of an Omni prompt are a list within the list
        segments = list(prompt) if isinstance(prompt, Sequence) and prompt is not given else []
    if not segments or not all(isinstance(one, torch.Tensor) and one.dim() == 2 for one in segments):
        raise _invalid(name, "one prompt: a tensor [T, width], or a list of one", _described(given))
    if 1 < len(segments) < segment_count(1):
        raise _invalid(name, f"1 segment, or {segment_count(1)} or more of Z-Image Omni", len(segments))
    return segments


def _described(given: Any) -> str:
    shape = getattr(given, "shape", None)
    if shape is not None:
        return f"shape {list(shape)}"
    return f"a list of {len(given)}" if isinstance(given, Sequence) else type(given).__name__


def _invalid(name: str, expected: str, got: object) -> InvalidArgument:
    return InvalidArgument(
        f"{name}: expected {expected}, got {got}: pass one prompt as diffusers' encode_prompt returns it",
        field=name,
        reason=f"{name.upper()}_INVALID",
        metadata={"expected": expected, "got": got},
    )


def _not_installed(library: str) -> FeatureMissing:
    return FeatureMissing(
        f"embeddings as arrays need {library}, which is not installed: pip install {library}",
        metadata={"missing": library},
    )
