"""Reference images on their way into a picture: blended into its prompt by the vision service, or beside it (Omni)."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zrelay_client._budget import Budget
from zrelay_client._embeds import Embeds
from zrelay_client._events import Sampling
from zrelay_client._info import GeneratorInfo, VisionInfo
from zrelay_client._omni import OmniImages
from zrelay_client._options import EncodeOptions, GenerateOptions, check_keywords
from zrelay_client._services import VisionService
from zrelay_client._values import whole
from zrelay_client._vision_calls import (
    check_files,
    check_reference,
    condition,
    condition_prompt,
    encode_files,
    open_files,
    open_reference,
    states_options,
)
from zrelay_client._vision_embeds import ImageEmbeds
from zrelay_client._vision_images import ImageFile, ImageSource
from zrelay_client._vision_messages import check_alpha, check_states
from zrelay_client._vision_options import ConditionOptions
from zrelay_shared.errors import FeatureMissing, InvalidArgument, ModelLoading
from zrelay_shared.limits import MAX_OMNI_IMAGES

_LEAST_AREA, _MOST_AREA = 4096, 16_777_216
_SIDE_BITS = 32


@dataclass(frozen=True, slots=True)
class References:
    """What a caller wants pictures painted after: a `reference` blended into the prompt, or `omni` images; not both."""

    reference: ImageSource | ImageEmbeds | None = None
    conditioning: ConditionOptions = field(default_factory=ConditionOptions)
    omni: tuple[ImageSource, ...] = ()

    def __bool__(self) -> bool:
        return self.reference is not None or bool(self.omni)

    def check_files(self) -> None:
        """Looks at the files, before a service is reached or started. Raises OSError, InvalidArgument."""
        check_files(self.omni)
        if self.reference is not None:
            check_reference(self.reference)

    def check_embeds(self, embeds: Embeds) -> None:
        """Raises InvalidArgument (IMAGE_COUNT_INVALID) for embeddings with places for more or fewer images."""
        places = embeds.image_count
        images = len(self.omni) or (len(embeds.omni.files) if embeds.omni is not None else 0)
        if places == images:
            return
        remedy = f"encode the prompt again with --image-count {images}" if images else "encode it without --image-count"
        places_told = f"places for {places}" if places else "an ordinary prompt"
        given = f"{images} omni images" if images else "no omni image"
        other = f", or give {places} images to be painted after" if places else ""
        raise _refusal("omni", "IMAGE_COUNT_INVALID", f"embeddings for {given}", f"{places_told}: {remedy}{other}")

    def encoding(self, encoding: EncodeOptions) -> EncodeOptions:
        """How the prompt is encoded for them. Raises InvalidArgument (IMAGE_COUNT_INVALID)."""
        given = encoding.get("image_count")
        if not self.omni or given == len(self.omni):
            return encoding
        if given is not None:
            raise _refusal("image_count", "IMAGE_COUNT_INVALID", f"{len(self.omni)}, one for each omni image", given)
        return {**encoding, "image_count": len(self.omni)}


def references_of(options: GenerateOptions) -> References:
    """What was asked for, looked at before anybody is called.

    Raises InvalidArgument (REFERENCE_AND_OMNI, REFERENCE_MISSING, REFERENCE_COUNT, ALPHA_INVALID), TypeError.
    """
    reference, conditioning, omni = (
        options.get("reference"),
        options.get("conditioning") or {},
        options.get("omni") or (),
    )
    check_keywords(condition_prompt, conditioning, ConditionOptions)
    if isinstance(omni, str | bytes) or not isinstance(omni, Sequence):
        raise TypeError("omni: expected several images, got one: put it into a list")
    if reference is None and conditioning:
        raise _refusal("conditioning", "REFERENCE_MISSING", "a reference that it is about", "none: give one too")
    if reference is not None and omni:
        raise _refusal(
            "omni",
            "REFERENCE_AND_OMNI",
            "a reference that is blended into the prompt, or omni images beside it",
            "both: choose one",
        )
    if len(omni) > MAX_OMNI_IMAGES:
        raise _refusal("omni", "REFERENCE_COUNT", f"at most {MAX_OMNI_IMAGES} images", len(omni))
    check_alpha(conditioning)
    return References(reference, conditioning, tuple(omni))


class ReferenceEncoder:
    """The references of one call, seen by a vision service: `connect`, then `look` once, then `applied` to prompts."""

    def __init__(self, vision: VisionService, asked: References) -> None:
        self._vision, self._asked = vision, asked
        self._source: ImageFile | ImageEmbeds | None = None
        self._files: list[ImageFile] = []
        self._said: VisionInfo | None = None
        self._omni: OmniImages | None = None
        self._area = 0

    async def connect(self, budget: Budget) -> None:
        """Reaches the service and reads the files. Raises what either does, and FeatureMissing without the engine."""
        said = self._said = await self._vision.info(budget.left("vision"))
        if self._asked.omni:
            self._files = await asyncio.to_thread(open_files, said, self._asked.omni)
            _require_feature(said, "vision.encode.grids", "omni")
        elif self._asked.reference is not None:
            source = self._source = await asyncio.to_thread(open_reference, said, self._asked.reference)
            if isinstance(source, ImageEmbeds):
                check_states(source, self._asked.conditioning)
            else:
                _require_feature(said, "vision.encode.states", "reference")

    def check(self, generator: GeneratorInfo, options: GenerateOptions) -> None:
        """Raises FeatureMissing where that generator cannot paint after images, ModelLoading while it is not known."""
        if self._asked.omni:
            _require_omni(generator)
            self._area = _target_area(options, generator.defaults)

    async def look(self, budget: Budget) -> None:
        """The images' half of the work, beside the encoding of the prompt."""
        if self._said is None:
            raise ValueError("reference_encoder: expected to be connected before it looks, got neither")
        if self._files:
            found = await encode_files(
                self._vision, self._said, self._files, "siglip", {"target_area": self._area}, budget
            )
            self._omni = OmniImages(tuple(self._files), tuple(found))
        elif isinstance(self._source, ImageFile):  # the service keeps file and states
            options = states_options(self._asked.conditioning)
            await encode_files(self._vision, self._said, [self._source], "qwen3_vl", options, budget)

    async def applied(self, embeds: Embeds, budget: Budget) -> Embeds:
        """The prompt with its references, ready to be painted."""
        if self._omni is not None:
            return embeds.beside(self._omni)
        if self._source is None:
            return embeds
        return (await condition(self._vision, embeds, self._source, self._asked.conditioning, budget)).embeds


def _target_area(options: GenerateOptions, defaults: Sampling) -> int:
    """Pixels of the picture that will be painted, within what a vision service resizes to. Raises InvalidArgument."""
    values: Mapping[str, object] = options
    sides = [
        default if (given := values.get(name)) is None else whole(name, given, 1, (1 << _SIDE_BITS) - 1)
        for name, default in (("width", defaults.width), ("height", defaults.height))
    ]
    return min(max(sides[0] * sides[1], _LEAST_AREA), _MOST_AREA)


def _require_omni(generator: GeneratorInfo) -> None:
    if not generator.ready:
        raise ModelLoading(f"the generator at {generator.endpoint} is still loading its model; try again in a while")
    if any(feature.name == "generate.omni" and feature.available for feature in generator.features):
        return
    raise FeatureMissing(
        f"omni: expected a generator that paints after images, got {generator.model_id} at {generator.endpoint}, whose "
        "transformer has no SigLIP parts: serve a Z-Image Omni checkpoint, or blend one image into the prompt instead "
        "(reference)",
        field="omni",
        metadata={"feature": "generate.omni"},
    )


def _require_feature(said: VisionInfo, name: str, field: str) -> None:
    for feature in said.features:
        if feature.name == name and not feature.available:
            raise FeatureMissing(
                f"{field}: the vision service at {said.endpoint} does not read images for that: {feature.note}",
                field=field,
                metadata={"feature": name},
            )


def _refusal(field: str, reason: str, expected: str, got: object) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: expected {expected}, got {got}",
        field=field,
        reason=reason,
        metadata={"expected": expected, "got": got},
    )
