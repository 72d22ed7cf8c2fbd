"""Reference images of a generation: blended into its prompt by the vision service, or beside the prompt (Omni)."""

import asyncio

from zrelay_client._transport.deadline import Budget
from zrelay_client._vision.calls import (
    VisionService,
    check_files,
    check_reference,
    condition,
    encode_files,
    open_files,
    open_reference,
)
from zrelay_client._wire.vision import check_states
from zrelay_client.embeds import Embeds, OmniImages
from zrelay_client.events import Sampling
from zrelay_client.image_embeds import ImageEmbeds
from zrelay_client.image_files import ImageFile
from zrelay_client.info import GeneratorInfo, VisionInfo
from zrelay_client.options import EncodeImagesOptions, EncodeOptions, GenerateOptions
from zrelay_shared.errors import FeatureMissing, InvalidArgument, ModelLoading

_MIN_AREA, _MAX_AREA = 4096, 16_777_216


def has_references(options: GenerateOptions) -> bool:
    """Returns whether the options name a reference image."""
    return options.reference is not None or bool(options.omni)


def check_reference_files(options: GenerateOptions) -> None:
    """Checks the files of reference images before a service is called. Raises OSError, InvalidArgument."""
    check_files(options.omni or ())
    if options.reference is not None:
        check_reference(options.reference)


def check_image_count(embeds: Embeds, options: GenerateOptions) -> None:
    """Checks that embeddings have a place for each Omni image.

    Raises:
        InvalidArgument: IMAGE_COUNT_INVALID.
    """
    places = embeds.image_count
    images = len(options.omni or ()) or (len(embeds.omni.files) if embeds.omni is not None else 0)
    if places == images:
        return
    remedy = f"encode the prompt again with --image-count {images}" if images else "encode it without --image-count"
    got = f"places for {places}" if places else "an ordinary prompt"
    expected = f"{images} omni images" if images else "no omni image"
    other = f", or set omni to {places} images" if places else ""
    raise _refusal("omni", "IMAGE_COUNT_INVALID", f"embeddings for {expected}", f"{got}: {remedy}{other}")


def encode_options_for(options: GenerateOptions, encoding: EncodeOptions) -> EncodeOptions:
    """Returns how the prompt of a generation is encoded: with a place for each Omni image.

    Raises:
        InvalidArgument: IMAGE_COUNT_INVALID, the options have another number of places.
    """
    images = len(options.omni or ())
    if not images or encoding.image_count == images:
        return encoding
    if encoding.image_count is not None:
        expected = f"{images} places in the prompt, one for each omni image"
        raise _refusal("image_count", "IMAGE_COUNT_INVALID", expected, encoding.image_count)
    return encoding.replaced(image_count=images)


class ReferenceEncoder:
    """Encodes the reference images of one call: `connect`, then `encode` once, then `apply` to each prompt."""

    def __init__(self, vision: VisionService, options: GenerateOptions) -> None:
        self._vision, self._options = vision, options
        self._source: ImageFile | ImageEmbeds | None = None
        self._files: list[ImageFile] = []
        self._info: VisionInfo | None = None
        self._omni: OmniImages | None = None
        self._area = 0

    async def connect(self, budget: Budget) -> None:
        """Calls the service's GetInfo, and reads the files.

        Raises:
            FeatureMissing: The service has no engine for the images.
            ZrelayError: The service does not answer.
            OSError: A file cannot be read.
        """
        info = self._info = await self._vision.info(budget.left("vision"))
        if self._options.omni:
            self._files = await asyncio.to_thread(open_files, info, self._options.omni)
            _require_feature(info, "vision.encode.grids", "omni")
        elif self._options.reference is not None:
            source = self._source = await asyncio.to_thread(open_reference, info, self._options.reference)
            if isinstance(source, ImageEmbeds):
                check_states(source, self._options.condition_options)
            else:
                _require_feature(info, "vision.encode.states", "reference")

    def check(self, generator: GeneratorInfo, options: GenerateOptions) -> None:
        """Checks that the generator can use the images, which are encoded for the size that the options set.

        Raises:
            FeatureMissing: It cannot.
            ModelLoading: It is not known yet.
        """
        if self._options.omni:
            _require_omni(generator)
            self._area = _target_area(options, generator.defaults)

    async def encode(self, budget: Budget) -> None:
        """Encodes the images. May run while the prompt is encoded."""
        if self._info is None:
            raise ValueError("ReferenceEncoder.encode: expected a call of connect before")
        if self._files:
            options = EncodeImagesOptions(target_area=self._area)
            grids = await encode_files(self._vision, self._info, self._files, "siglip", options, budget)
            self._omni = OmniImages(tuple(self._files), tuple(grids))
        elif isinstance(self._source, ImageFile):  # the service keeps the file and its states for `apply`
            options = EncodeImagesOptions(**self._options.condition_options.states_fields())
            await encode_files(self._vision, self._info, [self._source], "qwen3_vl", options, budget)

    async def apply(self, embeds: Embeds, budget: Budget) -> Embeds:
        """Returns a prompt with its reference images."""
        if self._omni is not None:
            return embeds.with_omni(self._omni)
        if self._source is None:
            return embeds
        return (await condition(self._vision, embeds, self._source, self._options.condition_options, budget)).embeds


def _target_area(options: GenerateOptions, defaults: Sampling) -> int:
    """Returns the pixels of the image to generate, within the limits of a vision service."""
    width = defaults.width if options.width is None else options.width
    height = defaults.height if options.height is None else options.height
    return min(max(width * height, _MIN_AREA), _MAX_AREA)


def _require_omni(generator: GeneratorInfo) -> None:
    if not generator.ready:
        raise ModelLoading(f"the generator at {generator.endpoint} is still loading its model; try again in a while")
    if any(feature.name == "generate.omni" and feature.available for feature in generator.features):
        return
    raise FeatureMissing(
        f"omni: expected a generator that accepts omni images, got {generator.model_id} at {generator.endpoint}, whose "
        "transformer has no SigLIP parts: serve a Z-Image Omni checkpoint, or blend one image into the prompt with "
        "`reference` instead",
        field="omni",
        metadata={"feature": "generate.omni"},
    )


def _require_feature(info: VisionInfo, name: str, field: str) -> None:
    for feature in info.features:
        if feature.name == name and not feature.available:
            raise FeatureMissing(
                f"{field}: the vision service at {info.endpoint} cannot encode images for that: {feature.note}",
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
