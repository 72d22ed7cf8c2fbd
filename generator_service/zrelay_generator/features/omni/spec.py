"""Reference images of a Z-Image Omni job, what a checkpoint allows, and how a request sends them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from zrelay.v1 import vision_pb2
from zrelay.v1.generation_pb2 import GenerationSpec
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.omni.images import read_reference
from zrelay_generator.features.protocol import FeatureSpec
from zrelay_generator.features.request import SpecRequest
from zrelay_generator.model.model import ModelLimits
from zrelay_shared.errors import FeatureMissing, invalid, invalid_from
from zrelay_shared.limits import MAX_OMNI_IMAGES
from zrelay_shared.omni import fits, segment_count
from zrelay_shared.torch_tensors import from_wire
from zrelay_shared.vision_fingerprint import complete_digest

CAPABILITY = "generate.omni"


@dataclass(frozen=True, slots=True, eq=False)
class OmniSpec(FeatureSpec):
    """Reference images of a job. All tuples may be empty, which is Omni without references.

    Attributes:
        pictures: [3, h, w] uint8 each, sides divisible by the VAE's factor and the patch size.
        grids: SigLIP grid of each picture, [rows, columns, siglip_width] of any dtype, on the CPU.
        files: SHA-256 (hex) of the file of each picture.
        encoders: Fingerprint digest of the model that made each grid, "" if it was not sent.
    """

    pictures: tuple[Tensor, ...]
    grids: tuple[Tensor, ...]
    files: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()

    def provenance(self) -> Mapping[str, object]:
        return {"omni": {"file_sha256": list(self.files), "siglip_encoders": list(self.encoders)}}


@dataclass(frozen=True, slots=True)
class OmniLimits:
    """Limits of reference images.

    Attributes:
        siglip_width: Width of the SigLIP grids.
        max_side: Greatest side in pixels, after resizing.
    """

    siglip_width: int
    max_side: int


def omni_limits(model: ModelLimits) -> OmniLimits | None:
    """Returns the limits of a checkpoint, None if its transformer has no SigLIP parts."""
    if not model.siglip_width:
        return None
    # A grid is spread over the latents of its picture, which have two rows for each position.
    return OmniLimits(model.siglip_width, model.max_side // 2)


_MAX_GRID_TOKENS = 4096
"""Limit of one SigLIP grid: four times the grid of the largest published checkpoint."""


def check_reference_counts(spec: GenerationSpec, accepts: Acceptance) -> None:
    """Refuses references that are too many or do not match, given by value or by name.

    Raises:
        FeatureMissing: The transformer has no SigLIP parts.
        InvalidArgument: REFERENCE_COUNT or SIGLIP_COUNT.
    """
    if not spec.HasField("omni"):
        return
    _limits(accepts, "spec.omni")
    images, grids = len(spec.omni.images), max(len(spec.omni.siglip_embeds), len(spec.omni.siglip_contents))
    if images > MAX_OMNI_IMAGES:
        raise invalid("spec.omni.images", f"at most {MAX_OMNI_IMAGES} references", images, reason="REFERENCE_COUNT")
    if grids != images:
        raise invalid(
            "spec.omni.siglip_embeds",
            f"{images}, one for each of the images in their order (EncodeImages of the vision service, engine SigLIP)",
            grids,
            reason="SIGLIP_COUNT",
        )


def check_references(request: SpecRequest) -> None:
    """Refuses prompts that were not encoded for the number of references, from the message alone.

    Raises:
        FeatureMissing: The transformer has no SigLIP parts.
        InvalidArgument: SEGMENT_COUNT.
    """
    for name in request.prompt_names:
        _check_segments(request, name)


def parse_references(request: SpecRequest) -> OmniSpec | None:
    """Returns the references, None if the request does not use Omni. Decodes their files.

    Raises:
        FeatureMissing: The transformer has no SigLIP parts.
        InvalidArgument: A prompt is too long, or a picture or a grid is refused.
        Cancelled: The caller has left.
        PayloadCorrupt: A checksum does not match.
    """
    if not request.spec.HasField("omni"):
        return None
    for name in request.prompt_names:
        _check_positions(request, name)
    limits, omni = _limits(request.accepts, "spec.omni"), request.spec.omni
    grids = [
        _grid(request, embeds, f"spec.omni.siglip_embeds[{index}]", limits)
        for index, embeds in enumerate(omni.siglip_embeds)
    ]
    files, pictures = [], {}
    for index, image in enumerate(omni.images):
        field = f"spec.omni.images[{index}]"
        data = request.image(image, field)
        files.append(hashlib.sha256(data).hexdigest())
        if files[-1] not in pictures:  # one file may be several references
            pictures[files[-1]] = _picture(request, data, field, limits)
    return OmniSpec(
        pictures=tuple(pictures[sha256] for sha256 in files),
        grids=tuple(grids),
        files=tuple(files),
        encoders=tuple(complete_digest(embeds.fingerprint) for embeds in omni.siglip_embeds),
    )


def _check_segments(request: SpecRequest, name: str) -> None:
    """Refuses a prompt that was not encoded for the number of references."""
    references, omni = len(request.spec.omni.images), request.spec.HasField("omni")
    field, segments = f"spec.{name}.prompt_embeds.segments", len(request.embeds(name).segments)
    if segments > 1 and not omni:
        _limits(request.accepts, field)
    wanted = segment_count(references)
    if segments != wanted:
        which = (
            f"those of a prompt for {references} references" if references else "that of a prompt without references"
        )
        remedy = f"encode it with image_count {references}" if omni else "send its references (omni)"
        raise invalid(field, f"{wanted}, {which}", segments, reason="SEGMENT_COUNT", remedy=remedy)


def _check_positions(request: SpecRequest, name: str) -> None:
    """Refuses a prompt with more tokens than the transformer has positions for."""
    lengths, limit = request.prompt(name).lengths, request.accepts.model.text_limit
    if not fits(lengths, limit):
        raise invalid(
            f"spec.{name}.prompt_embeds.segments",
            f"at most {limit} tokens, including the places of the images and padding",
            f"{sum(lengths)} in {len(lengths)} segments",
            reason="PROMPT_TOO_LONG",
            remedy=f"encode the prompt again with text_limit {limit}",
        )


def _picture(request: SpecRequest, data: bytes, field: str, limits: OmniLimits) -> Tensor:
    sampling, accepts = request.sampling, request.accepts
    try:
        return read_reference(
            data,
            sampling.width * sampling.height,
            accepts.sampling.size_multiple,
            limits.max_side,
            accepts.max_image_pixels,
            field=field,
            decoding=request.decoding,
        )
    except ValueError as error:
        raise invalid_from(field, error, reason="REFERENCE_INVALID") from error


def _grid(request: SpecRequest, embeds: vision_pb2.SiglipEmbeds, path: str, limits: OmniLimits) -> Tensor:
    engine = embeds.fingerprint.engine
    if engine not in (vision_pb2.VISION_ENGINE_UNSPECIFIED, vision_pb2.VISION_ENGINE_SIGLIP):
        raise invalid(
            f"{path}.fingerprint.engine",
            "a grid of the SigLIP engine",
            f"one of engine {engine}",
            reason="SIGLIP_ENGINE",
        )
    field = f"{path}.grid"
    grid = from_wire(request.parcel, embeds.grid, field=field, rank=3)
    rows, columns, width = grid.shape
    if width != limits.siglip_width:
        raise invalid(
            field,
            f"[rows, columns, {limits.siglip_width}], the SigLIP width that this transformer reads",
            list(grid.shape),
            reason="SIGLIP_WIDTH",
            remedy="use the SigLIP of the transformer's checkpoint",
        )
    if rows * columns > _MAX_GRID_TOKENS:
        raise invalid(
            field, f"at most {_MAX_GRID_TOKENS} places", f"{rows} x {columns}", reason="SIGLIP_GRID_TOO_LARGE"
        )
    return grid


def _limits(accepts: Acceptance, field: str) -> OmniLimits:
    limits = omni_limits(accepts.model)
    if limits is None:
        raise FeatureMissing(
            f"{field} needs {CAPABILITY}, for which this generator's transformer lacks the SigLIP parts; use a "
            "generator that serves a Z-Image Omni checkpoint, or generate without references",
            field=field,
            metadata={"feature": CAPABILITY},
        )
    return limits
