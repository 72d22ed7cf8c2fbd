"""Parses and checks a GenerationSpec for the fake generator: contents by digest, settings with their defaults."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from zrelay.v1 import generation_pb2
from zrelay.v1.content_pb2 import ContentRef, ImageInput
from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.generation_pb2 import GenerationSpec, SamplingOptions
from zrelay.v1.generator_pb2 import GeneratorLimits
from zrelay.v1.tensor_pb2 import Tensor
from zrelay.v1.vision_pb2 import SiglipEmbeds
from zrelay_client.testing.service import fake_fingerprint, sha256_hex
from zrelay_shared import fingerprint, tensors
from zrelay_shared.errors import FeatureMissing, InvalidArgument, NotFound, invalid
from zrelay_shared.fingerprint import EncoderComparison
from zrelay_shared.image_container import format_of
from zrelay_shared.limits import MAX_MESSAGE_BYTES, MAX_SEED, MIB
from zrelay_shared.omni import image_count
from zrelay_shared.wire import Parcel

_MULTIPLE, _MIN_SIDE, _MAX_SIDE, _MAX_PIXELS = 16, 16, 2048, 2048 * 2048
_MAX_STEPS, _MAX_IMAGES, _MAX_IMAGE_BYTES = 100, 16, 32 * MIB
_SHIFT, _QUALITY, _STRENGTH, PREVIEW_SIDE = 3.0, 95, 0.6, 256
UNAVAILABLE = {
    # field of GenerationSpec -> the capability that it needs
    "inpaint": "generate.inpaint",
    "controls": "generate.control",
    "loras": "generate.lora",
    "dype": "generate.dype",
    "passes": "generate.passes",
    "tiled_vae": "generate.tiled_vae",
}
_PLACES = {
    generation_pb2.JOB_PRIORITY_INTERACTIVE: 0,
    generation_pb2.JOB_PRIORITY_UNSPECIFIED: 1,
    generation_pb2.JOB_PRIORITY_NORMAL: 1,
    generation_pb2.JOB_PRIORITY_BATCH: 2,
}
"""Priority -> its place in the queue."""


@dataclass(frozen=True, slots=True, eq=False)
class FakeSpec:
    """A checked GenerationSpec.

    Attributes:
        parcel: The spec, every content by value.
        sampling: Every setting as it is used.
        sigmas: The schedule with the final 0.
        comparison: How the encoder of the embeddings relates to the generator's.
        identity: Digest of the request without its request_id.
    """

    parcel: Parcel[GenerationSpec]
    sampling: SamplingOptions
    sigmas: tuple[float, ...]
    comparison: EncoderComparison
    identity: str

    @property
    def message(self) -> GenerationSpec:
        """The message."""
        return self.parcel.message

    @property
    def place(self) -> int:
        """Its place in the queue by its priority; smaller ones come first."""
        return _PLACES[self.message.priority]

    @property
    def steps(self) -> int:
        """Steps that run for one image."""
        count = len(self.sigmas) - 1
        if self.message.WhichOneof("start") != "image_to_image":
            return count
        return count - int(max(count - min(count * self.strength, count), 0))

    @property
    def strength(self) -> float:
        """Share of the schedule that runs when it starts from an image."""
        return _strength(self.message)


@dataclass(frozen=True, slots=True)
class SpecReader:
    """Reads specs for one generator.

    Attributes:
        width: Width of an embedding.
        text_limit: Tokens of a prompt, at most.
        side: Default width and height of an image in pixels.
        steps: Default number of steps.
        contents: Contents by their SHA-256. Those of a spec are added.
    """

    width: int
    text_limit: int
    side: int
    steps: int
    contents: dict[str, bytes]

    @property
    def defaults(self) -> SamplingOptions:
        """What absent settings become."""
        return SamplingOptions(
            width=self.side,
            height=self.side,
            num_inference_steps=self.steps,
            guidance_scale=0.0,
            cfg_normalization=0.0,
            cfg_truncation=1.0,
            shift=_SHIFT,
            num_images=1,
        )

    @property
    def limits(self) -> GeneratorLimits:
        """What is accepted."""
        return GeneratorLimits(
            size_multiple=_MULTIPLE,
            min_side=_MIN_SIDE,
            max_side=_MAX_SIDE,
            max_pixels=_MAX_PIXELS,
            max_steps=_MAX_STEPS,
            max_images=_MAX_IMAGES,
            text_limit=self.text_limit,
            embeds_width=self.width,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_image_bytes=_MAX_IMAGE_BYTES,
        )

    def read(self, parcel: Parcel[Any], spec: GenerationSpec) -> FakeSpec:
        """Reads and checks a spec.

        Args:
            parcel: The message that contains `spec`, with its tensor bytes.
            spec: The spec.

        Raises:
            NotFound: CONTENT_UNKNOWN.
            FeatureMissing: It needs a feature that the fake generator does not have.
            InvalidArgument: A field is invalid.
            EncoderMismatch: The embeddings come from another encoder.
            PayloadCorrupt: A checksum does not match.
        """
        full = self._by_value(parcel, spec)
        message = full.message
        for descriptor, _ in message.ListFields():
            if (name := UNAVAILABLE.get(descriptor.name)) is not None:
                raise missing(name, f"spec.{descriptor.name}")
        sampling, sigmas = self._sampling(message.sampling)
        if sampling.guidance_scale > 0 and not message.HasField("negative_prompt"):
            raise InvalidArgument(
                f"spec.negative_prompt: guidance_scale {sampling.guidance_scale:g} needs it, got none; encode a "
                "negative prompt (it may be empty), or set guidance_scale to 0",
                field="message.negative_prompt",
                reason="NEGATIVE_PROMPT_MISSING",
            )
        comparison = self._check_prompt(full, "prompt")
        if sampling.guidance_scale > 0:
            self._check_prompt(full, "negative_prompt")
        _check_output(message)
        if message.WhichOneof("start") == "image_to_image":
            _check_image(message.image_to_image.image, "spec.image_to_image.image")
            if not 0.0 < _strength(message) <= 1.0:
                expected = "more than 0 and at most 1"
                raise invalid("spec.image_to_image.strength", expected, f"{_strength(message):g}")
        _check_omni(message)
        return FakeSpec(full, sampling, sigmas, comparison, _identity(full))

    def _by_value(self, source: Parcel[Any], spec: GenerationSpec) -> Parcel[Any]:
        """Returns a spec with every content by value. Stores the contents that it has by value under their digests."""
        message = GenerationSpec()
        message.CopyFrom(spec)
        sources = [source]
        for name in ("prompt", "negative_prompt"):
            holder = getattr(message, name)
            if holder.WhichOneof("source") == "content":
                embeds = Parcel.parse(PromptEmbeds, self._content(holder.content, f"spec.{name}.content"))
                sources.append(embeds)
                holder.prompt_embeds.CopyFrom(embeds.message)
            elif holder.WhichOneof("source") == "prompt_embeds":
                self._store(Parcel(holder.prompt_embeds, source).to_bytes())
        images = [(each, f"spec.omni.images[{index}]") for index, each in enumerate(message.omni.images)]
        if message.WhichOneof("start") == "image_to_image":
            images.append((message.image_to_image.image, "spec.image_to_image.image"))
        for image, path in images:
            if image.WhichOneof("source") == "content":
                image.data = self._content(image.content, f"{path}.content")
            else:
                self._store(image.data)
        for index, reference in enumerate(message.omni.siglip_contents):
            grid = Parcel.parse(SiglipEmbeds, self._content(reference, f"spec.omni.siglip_contents[{index}]"))
            sources.append(grid)
            message.omni.siglip_embeds.add().CopyFrom(grid.message)
        for value in message.omni.siglip_embeds if not message.omni.siglip_contents else ():
            self._store(Parcel(value, source).to_bytes())
        del message.omni.siglip_contents[:]
        if not message.omni.ListFields():
            message.ClearField("omni")
        return Parcel(message, *sources)

    def _store(self, data: bytes) -> None:
        self.contents[sha256_hex(data)] = data

    def _content(self, reference: ContentRef, path: str) -> bytes:
        if (data := self.contents.get(reference.sha256)) is None:
            raise NotFound(
                f"{path}: the content {reference.sha256} is not stored here: upload it (UploadBlob) or include it in "
                "the request, and send the request again",
                reason="CONTENT_UNKNOWN",
                field=path,
                metadata={"sha256": reference.sha256},
            )
        return data

    def _sampling(self, given: SamplingOptions) -> tuple[SamplingOptions, tuple[float, ...]]:
        """Returns every setting as it is used, and the schedule with the final 0."""
        used, path = self.defaults, "spec.sampling"
        used.MergeFrom(given)
        _check_sides(used.width, used.height)
        for name, most in (("num_images", _MAX_IMAGES), ("num_inference_steps", _MAX_STEPS)):
            if not 1 <= getattr(used, name) <= most:
                raise invalid(f"{path}.{name}", f"1 to {most}", getattr(used, name))
        for name in ("guidance_scale", "cfg_normalization", "cfg_truncation"):
            if not getattr(used, name) >= 0:
                raise invalid(f"{path}.{name}", "a number of at least 0", f"{getattr(used, name):g}")
        if not 0.001 <= used.shift <= 1000:
            raise invalid(f"{path}.shift", "0.001 to 1000", f"{used.shift:g}")
        if not used.HasField("seed"):
            used.seed = secrets.randbelow(1 << 32)
        if used.seed + used.num_images - 1 > MAX_SEED:
            most = MAX_SEED - used.num_images + 1
            expected = f"at most {most} for {used.num_images} images, of which image i has seed + i"
            raise invalid(f"{path}.seed", expected, used.seed)
        if not given.sigmas:
            steps = used.num_inference_steps
            return used, _shifted([1 - index / steps for index in range(steps)], used.shift)
        steps = len(given.sigmas)
        if given.HasField("num_inference_steps") and given.num_inference_steps != steps:
            expected = f"{steps}, one for each of the sigmas, or none"
            raise invalid(f"{path}.num_inference_steps", expected, given.num_inference_steps)
        falling = sorted(set(given.sigmas), reverse=True)
        if list(given.sigmas) != falling or not 0 < falling[-1] <= falling[0] <= 1:
            raise InvalidArgument(
                f"{path}.sigmas: expected falling values in (0, 1], got others",
                field=f"{path}.sigmas",
                reason="SIGMAS_INVALID",
            )
        used.num_inference_steps = steps
        used.ClearField("shift")
        return used, _shifted(given.sigmas, given.shift if given.HasField("shift") else 1.0)

    def _check_prompt(self, parcel: Parcel[GenerationSpec], name: str) -> EncoderComparison:
        """Checks the embeddings of a prompt field, and returns how their encoder relates to this generator."""
        path, embeds = f"spec.{name}.prompt_embeds", getattr(parcel.message, name).prompt_embeds
        if not embeds.segments:
            expected = "the embeddings of one prompt as the encoder sent them"
            raise invalid(path, expected, "none", reason="PROMPT_MISSING", remedy="encode a prompt first")
        encoder = fingerprint.from_message(embeds.fingerprint, path=f"{path}.fingerprint")
        comparison = fingerprint.compare(fake_fingerprint(self.width), encoder)
        for index, segment in enumerate(embeds.segments):
            tensor, at = segment.prompt_embeds, f"{path}.segments[{index}].prompt_embeds"
            tokens, width = tensors.check(tensor, parcel.bytes_of(tensor), field=at, rank=2).shape
            if width != self.width:
                raise invalid(at, f"rows of {self.width} values", f"rows of {width}", reason="TENSOR_SHAPE")
            if tokens > self.text_limit:
                raise invalid(at, f"at most {self.text_limit} tokens", tokens, reason="PROMPT_TOO_LONG")
        return comparison


def _strength(spec: GenerationSpec) -> float:
    start = spec.image_to_image
    return start.strength if start.HasField("strength") else _STRENGTH


def _shifted(sigmas: Sequence[float], shift: float) -> tuple[float, ...]:
    """Returns a shifted schedule with the final 0."""
    return (*(shift * sigma / (1 + (shift - 1) * sigma) for sigma in sigmas), 0.0)


def _check_output(spec: GenerationSpec) -> None:
    quality = spec.output.quality if spec.output.HasField("quality") else _QUALITY
    if not 1 <= quality <= 100:
        raise invalid("spec.output.quality", "1 to 100", quality)
    if spec.output.format not in generation_pb2.ImageFormat.values():
        raise invalid("spec.output.format", "a format of the contract", spec.output.format, reason="ENUM_UNKNOWN")
    if spec.priority not in _PLACES:
        raise invalid("spec.priority", "a priority of the contract", spec.priority, reason="ENUM_UNKNOWN")


def _check_omni(spec: GenerationSpec) -> None:
    images, grids = len(spec.omni.images), len(spec.omni.siglip_embeds)
    if images != grids:
        raise invalid("spec.omni.siglip_embeds", f"{images}, one for each image", grids, reason="SIGLIP_COUNT")
    places = image_count(len(spec.prompt.prompt_embeds.segments))
    if places != images:
        path = "spec.prompt.prompt_embeds.segments"
        raise invalid(path, f"a prompt of {images} images", f"one of {places}", reason="SEGMENT_COUNT")
    for index, image in enumerate(spec.omni.images):
        _check_image(image, f"spec.omni.images[{index}]")


def _check_image(image: ImageInput, path: str) -> None:
    if not image.data:
        raise invalid(path, "a PNG, JPEG or WebP file", "none", reason="IMAGE_MISSING")
    if format_of(image.data) is None:
        raise invalid(path, "a PNG, JPEG or WebP file", "something else", reason="IMAGE_FORMAT")


def _identity(parcel: Parcel[GenerationSpec]) -> str:
    """Returns a digest of a spec, in which tensors count by their bytes."""
    plain = GenerationSpec()
    plain.CopyFrom(parcel.message)
    _digest_tensors(plain, parcel)
    return sha256_hex(plain.SerializeToString(deterministic=True))


def _digest_tensors(message: Message, parcel: Parcel[Any]) -> None:
    """Replaces the bytes of every tensor by their digest."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        for inner in [value] if isinstance(value, Message) else value:
            if isinstance(inner, Tensor):
                inner.data = hashlib.sha256(parcel.bytes_of(inner)).digest()
            else:
                _digest_tensors(inner, parcel)


def _check_sides(width: int, height: int) -> None:
    wrong = {
        name: pixels
        for name, pixels in (("width", width), ("height", height))
        if pixels % _MULTIPLE or not _MIN_SIDE <= pixels <= _MAX_SIDE
    }
    if not wrong:
        return
    near = {name: min(max(round(px / _MULTIPLE) * _MULTIPLE, _MIN_SIDE), _MAX_SIDE) for name, px in wrong.items()}
    name, pixels = next(iter(wrong.items()))
    remedy = f"use {near[name]}"
    if len(wrong) > 1:
        remedy += f", and {near['height']} for spec.sampling.height in place of {height}"
    expected = f"{_MIN_SIDE} to {_MAX_SIDE} pixels, divisible by {_MULTIPLE}"
    raise invalid(f"spec.sampling.{name}", expected, pixels, remedy=remedy)


def missing(name: str, path: str = "") -> FeatureMissing:
    subject = f"{path}: " if path else ""
    return FeatureMissing(
        f"{subject}the fake generator does not support {name}: leave it out, or test with a real generator",
        field=path,
        metadata={"feature": name},
    )
