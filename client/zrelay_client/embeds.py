"""Embeddings of prompts, as an encoder returns them, and their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zrelay_client._wire.contents import Content, content_of, content_of_file
from zrelay_client.image_embeds import ImageEmbeds
from zrelay_client.image_files import ImageFile
from zrelay_shared.enums import word
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.fingerprint import EncoderFingerprint, from_message
from zrelay_shared.omni import image_count
from zrelay_shared.wire import Parcel

if TYPE_CHECKING:
    import torch

_IMAGES, _GRIDS = "omni.images.", "omni.grids."


@dataclass(frozen=True, slots=True)
class PromptReport:
    """What the encoder did to a prompt.

    Attributes:
        formatted_tokens: Tokens with the chat template.
        token_count: Tokens of the embeddings.
        dropped_tokens: Tokens that were cut off.
        long_prompt_action: What was done to fit `text_limit`; "" for nothing.
        text_limit: The limit in tokens.
        text_limit_source: "request", "checkpoint" or "default".
    """

    formatted_tokens: int
    token_count: int
    dropped_tokens: int
    long_prompt_action: str
    text_limit: int
    text_limit_source: str


@dataclass(frozen=True, slots=True)
class OmniImages:
    """The reference images of a Z-Image Omni generation: the files, and the SigLIP2 grid of each, in the same order."""

    files: tuple[ImageFile, ...]
    grids: tuple[ImageEmbeds, ...]

    @property
    def contents(self) -> dict[str, Content]:
        """Name -> content of each file and each grid."""
        files = {f"{_IMAGES}{index}": content_of_file(file.data) for index, file in enumerate(self.files)}
        parcels = [grid.parcel for grid in self.grids]
        return files | {
            f"{_GRIDS}{index}": content_of(parcel, parcel.message.results[0].siglip_embeds)
            for index, parcel in enumerate(parcels)
        }

    @property
    def size_bytes(self) -> int:
        """Total size of the files."""
        return sum(len(file.data) for file in self.files)


def is_grid(name: str) -> bool:
    """Returns whether a content of that name is a grid of Omni."""
    return name.startswith(_GRIDS)


def image_index(name: str) -> int | None:
    """Returns the index of the Omni image that a content of that name is, None for other contents."""
    return int(name.removeprefix(_IMAGES)) if name.startswith(_IMAGES) else None


class Embeds:
    """The embeddings of a prompt, and of its negative prompt if there is one, for `generate` or for a file.

    Holds the messages of the encoder. Made by `Client.encode`, `Embeds.load` or `Embeds.from_torch`.

    Attributes:
        fingerprint: The encoder that made them.
        report: What the encoder did to the prompt.
        negative_report: What the encoder did to the negative prompt, None without one.
        encode_s: Duration of the encoder's call in seconds; 0 for embeddings from a file.
        notes: Messages for people, for example that another encoder than the first was used.
        omni: Reference images of Z-Image Omni. A file does not contain them.
        sent: Whether they were sent to a generator before. From the second time on they are sent by digest.
    """

    __slots__ = (
        "_contents",
        "_parcel",
        "encode_s",
        "fingerprint",
        "negative_report",
        "notes",
        "omni",
        "report",
        "sent",
    )

    def __init__(
        self,
        parcel: Parcel[Any],
        *,
        fingerprint: EncoderFingerprint,
        report: PromptReport,
        negative_report: PromptReport | None,
        encode_s: float = 0.0,
    ) -> None:
        self._parcel = parcel
        self._contents: dict[str, Content] | None = None
        self.fingerprint = fingerprint
        self.report = report
        self.negative_report = negative_report
        self.encode_s = encode_s
        self.notes: tuple[str, ...] = ()
        self.omni: OmniImages | None = None
        self.sent = False

    @classmethod
    def from_parcel(cls, parcel: Parcel[Any], encode_s: float = 0.0) -> "Embeds":
        """Returns the embeddings in a GenerationSpec.

        Raises:
            EncoderMismatch: The embeddings have no valid fingerprint.
        """
        message = parcel.message
        negative = message.negative_prompt.prompt_embeds if message.HasField("negative_prompt") else None
        embeds = message.prompt.prompt_embeds
        return cls(
            parcel,
            fingerprint=from_message(embeds.fingerprint),
            report=_report(embeds.report),
            negative_report=_report(negative.report) if negative is not None else None,
            encode_s=encode_s,
        )

    @property
    def image_count(self) -> int:
        """Number of reference images that the prompt has places for (Z-Image Omni); 0 for an ordinary prompt."""
        return image_count(len(self._parcel.message.prompt.prompt_embeds.segments))

    @property
    def prompt(self) -> str | None:
        """The prompt, None if the file does not contain it."""
        provenance = self._parcel.message.provenance
        return provenance.prompt if provenance.HasField("prompt") else None

    @property
    def negative_prompt(self) -> str | None:
        """The negative prompt, None if there is none or the file does not contain it."""
        provenance = self._parcel.message.provenance
        return provenance.negative_prompt if provenance.HasField("negative_prompt") else None

    @property
    def parcel(self) -> Parcel[Any]:
        """A GenerationSpec with the embeddings, for the modules that build messages."""
        return self._parcel

    @property
    def contents(self) -> dict[str, Content]:
        """Field of a GenerationSpec -> its content, for embeddings and Omni images."""
        if self._contents is None:
            spec, fields = self._parcel.message, ("prompt", "negative_prompt")
            present = [name for name in fields if spec.HasField(name)]
            self._contents = {name: content_of(self._parcel, getattr(spec, name).prompt_embeds) for name in present}
            self._contents |= self.omni.contents if self.omni is not None else {}
        return self._contents

    def with_omni(self, omni: OmniImages) -> "Embeds":
        """Returns the same prompt with reference images of Z-Image Omni."""
        other = Embeds(
            self._parcel,
            fingerprint=self.fingerprint,
            report=self.report,
            negative_report=self.negative_report,
            encode_s=self.encode_s,
        )
        other.omni = omni
        return other

    def save(self, path: Path | str, *, keep_prompt: bool = True) -> None:
        """Writes a safetensors file that `zrelay generate --prompt-embeds` and `load` read, atomically.

        Args:
            path: The file.
            keep_prompt: Whether the file contains the texts. The generator does not need them.

        Raises:
            OSError: The file cannot be written.
        """
        parcel = self._parcel
        if not keep_prompt:
            parcel = Parcel(type(parcel.message)(), parcel)
            parcel.message.CopyFrom(self._parcel.message)
            parcel.message.ClearField("provenance")
        from zrelay_shared import embeds_file  # its codecs are needed for files alone

        embeds_file.write(Path(path), parcel)

    @classmethod
    def load(cls, path: Path | str) -> "Embeds":
        """Reads embeddings that `save` wrote.

        Raises:
            InvalidArgument: EMBEDS_FILE_INVALID, the file does not contain prompt embeddings.
            PayloadCorrupt: The bytes of the file are damaged.
            OSError: The file cannot be read.
        """
        from zrelay_shared import embeds_file

        return cls.from_parcel(embeds_file.read(Path(path)))

    def to_torch(
        self, *, negative: bool = False, dtype: "torch.dtype | None" = None, device: "torch.device | str | None" = None
    ) -> "list[Any]":
        """Returns a copy of the embeddings as diffusers' pipelines take them: a list with one tensor [T, width].

            pipeline(prompt_embeds=embeds.to_torch(dtype=torch.float32), guidance_scale=0.0)

        For a Z-Image Omni prompt the list contains a list of one tensor per segment.

        Args:
            negative: Whether to return the negative prompt.
            dtype: Data type of the tensors; that of the pipeline. Default: that of the embeddings, bfloat16 as a rule.
            device: Device of the tensors. Default: the CPU.

        Raises:
            FeatureMissing: torch is not installed.
            InvalidArgument: NEGATIVE_PROMPT_MISSING, there is no negative prompt.
        """
        from zrelay_client._wire.arrays import torch_segments

        tensors = torch_segments(self._parcel, self._message(negative=negative))
        moved = [tensor.to(device=device, dtype=dtype) for tensor in tensors]
        return moved if len(moved) == 1 else [moved]

    def to_numpy(self, *, negative: bool = False) -> "list[Any]":
        """Returns a copy of the embeddings as float32 arrays, in the lists of `to_torch`.

        numpy has no bfloat16; float32 holds every value of it.

        Args:
            negative: Whether to return the negative prompt.

        Raises:
            FeatureMissing: numpy is not installed.
            InvalidArgument: NEGATIVE_PROMPT_MISSING, there is no negative prompt.
        """
        from zrelay_client._wire.arrays import numpy_segments

        arrays = numpy_segments(self._parcel, self._message(negative=negative))
        return arrays if len(arrays) == 1 else [arrays]

    @classmethod
    def from_torch(
        cls,
        prompt_embeds: "torch.Tensor | Sequence[Any]",
        negative_prompt_embeds: "torch.Tensor | Sequence[Any] | None" = None,
        *,
        fingerprint: EncoderFingerprint | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
    ) -> "Embeds":
        """Returns embeddings of one prompt from tensors, which are copied.

        Without a fingerprint nothing is known of the encoder, and the relation to the generator is "unverified". The
        generator refuses embeddings of another width.

        Args:
            prompt_embeds: A tensor [T, width] of bfloat16, float16 or float32, or a list of one, as diffusers'
                `encode_prompt` returns it; for Z-Image Omni a list of one list of segments.
            negative_prompt_embeds: The negative prompt in the same form.
            fingerprint: The encoder that made them, for example `fingerprint` of other embeddings.
            prompt: The text of the prompt, for the image file.
            negative_prompt: The text of the negative prompt, for the image file.

        Raises:
            FeatureMissing: torch is not installed.
            InvalidArgument: PROMPT_EMBEDS_INVALID, NEGATIVE_PROMPT_EMBEDS_INVALID.
        """
        from zrelay_client._wire.arrays import spec_of_torch

        return cls.from_parcel(
            spec_of_torch(prompt_embeds, negative_prompt_embeds, fingerprint, prompt, negative_prompt)
        )

    def _message(self, *, negative: bool) -> Any:
        """Returns the PromptEmbeds of the prompt or of the negative prompt."""
        if negative and self.negative_report is None:
            raise InvalidArgument(
                "negative_prompt: expected one within the embeddings, got none: encode again with a negative prompt, "
                "which may be empty",
                field="negative_prompt",
                reason="NEGATIVE_PROMPT_MISSING",
            )
        spec = self._parcel.message
        return (spec.negative_prompt if negative else spec.prompt).prompt_embeds

    def __repr__(self) -> str:
        return f"Embeds({self.report.token_count} tokens, encoder {self.fingerprint.digest[:12]})"


@dataclass(frozen=True, slots=True)
class EmbedsStatistics:
    """Scale of embeddings.

    Attributes:
        token_rms: Median over the tokens of the root mean square of a token.
        mean, std: Mean and standard deviation of all values.
        tokens: Number of tokens.
    """

    token_rms: float
    mean: float
    std: float
    tokens: int


@dataclass(frozen=True, slots=True)
class ConditionReport:
    """What conditioning did to a prompt.

    Attributes:
        before, after: Statistics of the prompt's embeddings before and after conditioning.
        states: Statistics of the image's hidden states before blending.
        outliers: (dimension, ratio of deviations) of masked dimensions, at most 20 of `outlier_count`.
        outlier_count: Number of dimensions that were masked.
        calibrated: Whether the vision service had reference statistics of the prompt's encoder.
    """

    before: EmbedsStatistics
    states: EmbedsStatistics
    after: EmbedsStatistics
    outliers: tuple[tuple[int, float], ...]
    outlier_count: int
    calibrated: bool


@dataclass(frozen=True, slots=True)
class Conditioned:
    """A conditioned prompt for `generate`, and what was done. `image_sha256` is "" for saved states."""

    embeds: Embeds
    report: ConditionReport
    image_sha256: str


def _report(message: Any) -> PromptReport:
    return PromptReport(
        formatted_tokens=message.formatted_tokens,
        token_count=message.token_count,
        dropped_tokens=message.dropped_tokens,
        long_prompt_action=word(message, "long_prompt_action"),
        text_limit=message.text_limit,
        text_limit_source=word(message, "text_limit_source"),
    )
