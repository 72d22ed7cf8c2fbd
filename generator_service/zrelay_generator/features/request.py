"""One GenerationSpec while it is parsed, with the helpers that the features' request parsing shares."""

from dataclasses import dataclass, field
from typing import Any

import torch

from zrelay.v1 import content_pb2, embeds_pb2
from zrelay.v1 import generation_pb2 as pb
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.protocol import Prompt, SamplingSettings
from zrelay_shared.errors import FeatureMissing, invalid
from zrelay_shared.fingerprint import compare, from_message
from zrelay_shared.service.decoding import Decoding
from zrelay_shared.torch_tensors import from_wire
from zrelay_shared.wire import Parcel


@dataclass(frozen=True, slots=True, eq=False)
class SpecRequest:
    """A GenerationSpec to be parsed.

    Attributes:
        parcel: The message that contains the spec, with its tensor bytes.
        spec: The spec. Contents by name have been replaced by their values.
        sampling: The parsed sampling, before any feature is applied.
        accepts: Limits and defaults.
        decoding: The decoding of the request's pictures.
    """

    parcel: Parcel[Any]
    spec: pb.GenerationSpec
    sampling: SamplingSettings
    accepts: Acceptance
    decoding: Decoding = field(default_factory=Decoding)
    _read: dict[str, Prompt] = field(default_factory=dict)

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """Fields of the prompts that this job uses; the negative prompt is used only if guidance is on."""
        return ("prompt", "negative_prompt") if self.sampling.guidance_scale > 0.0 else ("prompt",)

    def prompt(self, name: str) -> Prompt:
        """Reads the embeddings of one prompt field, once.

        Args:
            name: `prompt` or `negative_prompt`.

        Raises:
            EncoderMismatch: The encoder does not belong to the checkpoint.
            InvalidArgument: A tensor has the wrong form, width or length.
            PayloadCorrupt: A checksum does not match.
        """
        if name not in self._read:
            path, embeds = f"spec.{name}.prompt_embeds", self.embeds(name)
            compare(self.accepts.encoder, from_message(embeds.fingerprint, path=f"{path}.fingerprint"))
            self._read[name] = self._segments(embeds, path)
        return self._read[name]

    def embeds(self, name: str) -> embeds_pb2.PromptEmbeds:
        """Returns the PromptEmbeds message of one prompt field.

        Raises:
            InvalidArgument: There is none.
            FeatureMissing: The content was not replaced by its value.
        """
        source: pb.EmbedsInput = getattr(self.spec, name)
        if source.WhichOneof("source") == "content":
            raise missing("content.upload", f"spec.{name}.content")
        if not source.prompt_embeds.segments:
            raise invalid(
                f"spec.{name}.prompt_embeds",
                "the embeddings of one prompt as the encoder sent them",
                "none",
                reason="PROMPT_MISSING",
                remedy="encode a prompt first",
            )
        return source.prompt_embeds

    def image(self, source: content_pb2.ImageInput, path: str) -> bytes:
        """Returns the image file of one field.

        Args:
            source: The field's message.
            path: Path of the field, for refusals.

        Raises:
            InvalidArgument: There is none, or it is too large.
            FeatureMissing: The content was not replaced by its value.
        """
        if source.WhichOneof("source") == "content":
            raise missing("content.upload", f"{path}.content")
        if not source.data:
            raise invalid(path, "a PNG, JPEG or WebP file", "none", reason="IMAGE_MISSING")
        limit, size = self.accepts.max_image_bytes, len(source.data)
        if size > limit:
            raise invalid(
                path, f"at most {limit} bytes", size, reason="IMAGE_TOO_LARGE", remedy="save it as a smaller file"
            )
        return bytes(source.data)

    def _segments(self, embeds: embeds_pb2.PromptEmbeds, path: str) -> Prompt:
        limits, parts = self.accepts.model, []
        for index, segment in enumerate(embeds.segments):
            field = f"{path}.segments[{index}].prompt_embeds"
            part = from_wire(self.parcel, segment.prompt_embeds, field=field, rank=2)
            tokens, width = part.shape
            if width != limits.embeds_width:
                raise invalid(field, f"rows of {limits.embeds_width} values", f"rows of {width}", reason="TENSOR_SHAPE")
            if tokens > limits.text_limit:
                raise invalid(
                    field,
                    f"at most {limits.text_limit} tokens",
                    tokens,
                    reason="PROMPT_TOO_LONG",
                    remedy=f"encode the prompt again with text_limit {limits.text_limit}",
                )
            parts.append(part)
        return Prompt(parts[0] if len(parts) == 1 else torch.cat(parts), tuple(map(len, parts)))


def missing(capability: str, field: str = "") -> FeatureMissing:
    """Returns the error for a capability that this generator does not have.

    Args:
        capability: Its name in GetInfo.
        field: Path of the request field that needs it, if there is one.
    """
    subject = f"{field}: " if field else ""
    return FeatureMissing(
        f"{subject}this generator does not support {capability}: leave it out, or use a newer generator",
        field=field,
        metadata={"feature": capability},
    )


def decimal(value: float) -> float:
    """Returns the decimal number that a client wrote before it became a float32: 0.6 for 0.60000002384.

    With strength 0.60000002384, ten steps would become seven instead of six. A float32 keeps six significant digits.
    """
    return float(f"{value:.6g}")
