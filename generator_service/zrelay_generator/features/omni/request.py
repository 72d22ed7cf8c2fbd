"""The reference images of a request: counted, measured, read."""

import hashlib
from typing import Any

from torch import Tensor

from zrelay.v1 import generation_pb2 as pb
from zrelay.v1 import vision_pb2
from zrelay_generator.api.parsing_features import image_bytes
from zrelay_generator.features.acceptance import Acceptance, OmniLimits
from zrelay_generator.features.omni.images import read_reference
from zrelay_generator.features.omni.spec import References
from zrelay_generator.features.protocol import Sampling
from zrelay_shared.errors import FeatureMissing, InvalidArgument
from zrelay_shared.limits import MAX_OMNI_IMAGES
from zrelay_shared.omni import fits, segment_count
from zrelay_shared.torch_tensors import from_wire
from zrelay_shared.wire import Parcel

_MAX_GRID_TOKENS = 4096
"""Of one SigLIP grid: four times that of the largest published checkpoint."""


def check_omni(spec: pb.GenerationSpec, accepts: Acceptance) -> None:
    """Refuses references that do not go together, looking at counts alone. Raises FeatureMissing, InvalidArgument."""
    if not spec.HasField("omni"):
        return
    _limits(accepts, "spec.omni")
    images, grids = len(spec.omni.images), len(spec.omni.siglip_embeds)
    if images > MAX_OMNI_IMAGES:
        raise _refusal("spec.omni.images", f"at most {MAX_OMNI_IMAGES} references", f"{images}", "REFERENCE_COUNT")
    if grids != images:
        raise _refusal(
            "spec.omni.siglip_embeds",
            f"{images}, one for each of the images in their order (EncodeImages of the vision service, engine SigLIP)",
            f"{grids}",
            "SIGLIP_COUNT",
        )


def check_segments(spec: pb.GenerationSpec, name: str, segments: int, accepts: Acceptance) -> None:
    """Refuses a prompt that was not encoded for as many references. Raises FeatureMissing, InvalidArgument."""
    images, field = len(spec.omni.images), f"spec.{name}.prompt_embeds.segments"
    if segments > 1 and not spec.HasField("omni"):
        _limits(accepts, field)
    wanted = segment_count(images)
    if segments != wanted:
        remedy = f"encode it with image_count {images}" if spec.HasField("omni") else "send its references (omni)"
        what = f"those of a prompt for {images} references" if images else "that of a prompt without references"
        raise _refusal(field, f"{wanted}, {what}", f"{segments}; {remedy}", "SEGMENT_COUNT")


def check_positions(lengths: tuple[int, ...], name: str, text_limit: int) -> None:
    """Refuses an Omni prompt of more tokens than there are positions for. Raises InvalidArgument."""
    if not fits(lengths, text_limit):
        raise _refusal(
            f"spec.{name}.prompt_embeds.segments",
            f"at most {text_limit} tokens with the images' places and padding (GetInfo's text_limit: pass it to the "
            "encoder)",
            f"{sum(lengths)} in {len(lengths)} segments",
            "PROMPT_TOO_LONG",
        )


def parse_references(
    parcel: Parcel[Any],
    spec: pb.GenerationSpec,
    sampling: Sampling,
    segments: tuple[int, ...],
    negative_segments: tuple[int, ...],
    accepts: Acceptance,
) -> References | None:
    """The references of a request, None where there is no `omni`. Decodes their files. Raises InvalidArgument,
    PayloadCorrupt, FeatureMissing."""
    if not spec.HasField("omni"):
        return None
    limits, given = _limits(accepts, "spec.omni"), spec.omni
    grids = [
        _grid(parcel, embeds, f"spec.omni.siglip_embeds[{at}]", limits) for at, embeds in enumerate(given.siglip_embeds)
    ]
    pictures, files = [], []
    for at, image in enumerate(given.images):
        field = f"spec.omni.images[{at}]"
        data = image_bytes(image, field, accepts)
        try:
            picture = read_reference(
                data,
                sampling.width * sampling.height,
                accepts.sampling.size_multiple,
                limits.max_side,
                accepts.max_image_pixels,
            )
        except ValueError as error:
            raise InvalidArgument(f"{field}: {error}", field=field, reason="REFERENCE_INVALID") from error
        pictures.append(picture)
        files.append(hashlib.sha256(data).hexdigest())
    return References(
        pictures=tuple(pictures),
        grids=tuple(grids),
        segments=segments,
        negative_segments=negative_segments,
        files=tuple(files),
        encoders=tuple(embeds.fingerprint.digest for embeds in given.siglip_embeds),
    )


def _grid(parcel: Parcel[Any], embeds: vision_pb2.SiglipEmbeds, field: str, limits: OmniLimits) -> Tensor:
    if embeds.fingerprint.engine not in (vision_pb2.VISION_ENGINE_UNSPECIFIED, vision_pb2.VISION_ENGINE_SIGLIP):
        got = f"one of engine {embeds.fingerprint.engine}"
        raise _refusal(f"{field}.fingerprint.engine", "a grid of the SigLIP engine", got, "SIGLIP_ENGINE")
    field = f"{field}.grid"
    grid = from_wire(parcel, embeds.grid, field=field, rank=3)
    rows, columns, width = grid.shape
    if width != limits.siglip_width:
        raise _refusal(
            field,
            f"[rows, columns, {limits.siglip_width}], as this transformer was made for",
            f"{list(grid.shape)}; use the SigLIP of its own checkpoint",
            "SIGLIP_WIDTH",
        )
    if rows * columns > _MAX_GRID_TOKENS:
        raise _refusal(field, f"at most {_MAX_GRID_TOKENS} places", f"{rows} x {columns}", "SIGLIP_GRID_TOO_LARGE")
    return grid


def _limits(accepts: Acceptance, field: str) -> OmniLimits:
    if accepts.omni is None:
        raise FeatureMissing(
            f"{field} needs generate.omni, for which this generator's transformer lacks the SigLIP parts; use a "
            "generator that serves a Z-Image Omni checkpoint, or paint without references",
            field=field,
            metadata={"feature": "generate.omni"},
        )
    return accepts.omni


def _refusal(field: str, expected: str, got: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: expected {expected}, got {got}",
        field=field,
        reason=reason,
        metadata={"expected": expected, "got": got},
    )
