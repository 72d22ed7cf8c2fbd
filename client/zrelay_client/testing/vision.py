"""A fake VisionService: small deterministic states and grids, made of the digest of an image file."""

import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import vision_pb2 as pb
from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.info_pb2 import QueueInfo
from zrelay_client.testing.service import (
    BACKEND,
    DEVICE,
    DTYPE,
    FakeService,
    attach,
    features,
    read_values,
    sha256_hex,
    values_of,
)
from zrelay_shared import fingerprint as encoder_fingerprint
from zrelay_shared import vision_fingerprint
from zrelay_shared.errors import FailedPrecondition, NotFound, invalid
from zrelay_shared.image_container import format_of
from zrelay_shared.limits import MAX_MESSAGE_BYTES, MIB
from zrelay_shared.rpc import Context
from zrelay_shared.service.info import connection_info, server_version
from zrelay_shared.tensors import FLOATS, dtype_name
from zrelay_shared.vision_fingerprint import VisionFingerprint
from zrelay_shared.wire import Parcel

GRID = (4, 4, 32)
"""Shape of a fake SigLIP grid."""
_STATE_ROWS, _IMAGE_ROWS = 12, 6
_MAX_IMAGES, _MAX_IMAGE_BYTES, _MAX_TEXTS = 16, 32 * MIB, 64
_DEFAULT_ALPHA, _DEFAULT_LAYER = 0.3, -6
_ENGINES = {number: name for name, number in vision_fingerprint.ENGINES.items()}
_AVAILABLE = (
    *("vision.encode", "vision.encode.states", "vision.encode.grids", "vision.layer", "vision.condition"),
    *("vision.score",),
)
_CALIBRATED = (
    pb.StateNormalization.STATE_NORMALIZATION_PER_DIM,
    pb.StateNormalization.STATE_NORMALIZATION_HYBRID,
)
_UNAVAILABLE = ("vision.calibrated",)


@dataclass(eq=False)
class FakeVision(FakeService):
    """The fake vision service.

    Attributes:
        width: Width of the states; that of the encoder's embeddings.
    """

    width: int = 64
    _images: set[str] = field(default_factory=set, init=False, repr=False)

    @property
    def descriptor(self) -> ServiceDescriptor:
        """zrelay.v1.VisionService."""
        return pb.DESCRIPTOR.services_by_name["VisionService"]

    async def GetInfo(
        self, parcel: Parcel[pb.VisionServiceGetInfoRequest], context: Context
    ) -> pb.VisionServiceGetInfoResponse:
        """Describes the vision service."""
        return pb.VisionServiceGetInfoResponse(
            version=server_version("vision", ("grpcio", "protobuf")),
            ready=True,
            engines=[
                pb.VisionEngineInfo(engine=number, ready=True, fingerprint=self._fingerprint(name))
                for number, name in _ENGINES.items()
            ],
            device=DEVICE,
            features=features(_AVAILABLE, _UNAVAILABLE),
            queue=QueueInfo(max_waiting=16),
            max_images=_MAX_IMAGES,
            max_image_bytes=_MAX_IMAGE_BYTES,
            max_image_pixels=1 << 26,
            max_message_bytes=MAX_MESSAGE_BYTES,
            connection=connection_info(),
        )

    async def EncodeImages(
        self, parcel: Parcel[pb.EncodeImagesRequest], context: Context
    ) -> Parcel[pb.EncodeImagesResponse]:
        """Encodes images with one of the engines, all or none."""
        request = parcel.message
        self._receive("EncodeImages", request)
        if (engine := _ENGINES.get(request.engine)) is None:
            raise invalid("engine", "VISION_ENGINE_SIGLIP or VISION_ENGINE_QWEN3_VL", "none", reason="ENGINE_MISSING")
        if engine == "siglip" and request.states_options.ListFields():
            raise invalid("states_options", "none with VISION_ENGINE_SIGLIP", "some", reason="STATES_OPTIONS_UNUSED")
        dtype = dtype_name(request.dtype) if request.dtype else "BF16"
        if dtype not in FLOATS:
            raise invalid("dtype", " or ".join(FLOATS), dtype or request.dtype)
        digests = self._digests(request.images)
        reply = Parcel(pb.EncodeImagesResponse())
        for sha256 in digests:
            result = reply.message.results.add(image_sha256=sha256)
            if engine == "siglip":
                result.siglip_embeds.fingerprint.CopyFrom(self._fingerprint("siglip"))
                values = values_of(f"grid {sha256}", GRID[0] * GRID[1] * GRID[2])
                attach(reply, result.siglip_embeds.grid, values, GRID, dtype)
            else:
                self._add_states(reply, result.states, sha256, request.states_options, dtype)
        return reply

    async def ConditionPrompt(
        self, parcel: Parcel[pb.ConditionPromptRequest], context: Context
    ) -> Parcel[pb.ConditionPromptResponse]:
        """Blends an image's states into a prompt, value by value. alpha 0 returns the input bit for bit."""
        request, options = parcel.message, parcel.message.options
        self._receive("ConditionPrompt", request)
        path = "prompt_embeds.segments"
        if len(request.prompt_embeds.segments) != 1:
            raise invalid(path, "one segment", len(request.prompt_embeds.segments), reason="SEGMENT_COUNT")
        encoder = encoder_fingerprint.from_message(request.prompt_embeds.fingerprint, path="prompt_embeds.fingerprint")
        tensor = request.prompt_embeds.segments[0].prompt_embeds
        before, shape = read_values(parcel, tensor, f"{path}[0].prompt_embeds", rank=2)
        states, sha256 = self._states(parcel, shape[1])
        alpha = options.alpha if options.HasField("alpha") else _DEFAULT_ALPHA
        if not 0.0 <= alpha <= 1.0:
            raise invalid("options.alpha", "0 to 1", f"{alpha:g}")
        if options.normalization in _CALIBRATED or options.outlier_mask > pb.OutlierMask.OUTLIER_MASK_NONE:
            raise FailedPrecondition(
                "the fake vision service has no reference statistics: leave out outlier_mask, and normalise by "
                "token_rms or global",
                reason="REFERENCE_STATISTICS_MISSING",
            )
        reply = Parcel(pb.ConditionPromptResponse(image_sha256=sha256), parcel)
        embeds, after = reply.message.prompt_embeds, before
        embeds.CopyFrom(request.prompt_embeds)
        if alpha:
            pairs = ((value, states[index % len(states)]) for index, value in enumerate(before))
            after = array("f", [(1 - alpha) * value + alpha * state for value, state in pairs])
            modification = ("conditioning", f"alpha={alpha:g} image={sha256[:12]}")
            modified = replace(encoder, modifications=(*encoder.modifications, *modification))
            embeds.fingerprint.CopyFrom(encoder_fingerprint.to_message(modified))
            attach(reply, embeds.segments[0].prompt_embeds, after, shape, dtype_name(tensor.dtype))
        reply.message.report.CopyFrom(
            pb.ConditionReport(
                before=_statistics(before, shape[1]),
                states=_statistics(states, shape[1]),
                after=_statistics(after, shape[1]),
            )
        )
        return reply

    async def ScoreImages(self, parcel: Parcel[pb.ScoreImagesRequest], context: Context) -> pb.ScoreImagesResponse:
        """Scores how well texts describe images: values from 0 to 1, the same for the same image and text."""
        request = parcel.message
        self._receive("ScoreImages", request)
        if not 1 <= len(request.texts) <= _MAX_TEXTS:
            raise invalid("texts", f"1 to {_MAX_TEXTS} texts", len(request.texts), reason="TEXT_COUNT")
        for index, text in enumerate(request.texts):
            if not text.strip():
                raise invalid(f"texts[{index}]", "a text", "an empty one", reason="TEXT_EMPTY")
        reply = pb.ScoreImagesResponse()
        for sha256 in self._digests(request.images):
            scores = [abs(values_of(f"{sha256} {text}", 1)[0]) / 2 for text in request.texts]
            reply.images.add(probabilities=scores, cosines=[2 * score - 1 for score in scores])
        return reply

    def _states(self, parcel: Parcel[pb.ConditionPromptRequest], width: int) -> "tuple[array[float], str]":
        """Returns the states of the request's image, and the digest of the image, "" for saved states."""
        request = parcel.message
        if request.WhichOneof("source") == "states":
            values, shape = read_values(parcel, request.states.hidden_states, "states.hidden_states", rank=2)
            if shape[1] != width:
                raise invalid("states.hidden_states", f"rows of {width} values", f"rows of {shape[1]}")
            return values, ""
        (sha256,) = self._digests([request.image], "image")
        return values_of(f"states {sha256}", _STATE_ROWS * width), sha256

    def _add_states(
        self,
        reply: Parcel[pb.EncodeImagesResponse],
        states: pb.VisionStates,
        sha256: str,
        options: pb.StatesOptions,
        dtype: str,
    ) -> None:
        tokens = options.tokens or pb.VisionTokens.VISION_TOKENS_FULL
        only_image = tokens in (
            pb.VisionTokens.VISION_TOKENS_IMAGE_ONLY,
            pb.VisionTokens.VISION_TOKENS_IMAGE_NO_MARKERS,
        )
        rows = _IMAGE_ROWS if only_image else _STATE_ROWS
        layer = options.hidden_layer if options.HasField("hidden_layer") else _DEFAULT_LAYER
        states.fingerprint.CopyFrom(self._fingerprint("qwen3_vl", layer))
        states.image_token_start, states.image_token_count = (0 if only_image else 4), _IMAGE_ROWS
        states.tokens = tokens
        text = f"states {layer} {tokens} {options.text} {options.system_prompt} {sha256}"
        attach(reply, states.hidden_states, values_of(text, rows * self.width), (rows, self.width), dtype)

    def _digests(self, images: Sequence[ImageInput], path: str = "") -> list[str]:
        """Checks images, and returns the SHA-256 of each file."""
        if not 1 <= len(images) <= _MAX_IMAGES:
            raise invalid("images", f"1 to {_MAX_IMAGES} images", len(images), reason="IMAGE_COUNT")
        return [self._digest(image, path or f"images[{index}]") for index, image in enumerate(images)]

    def _digest(self, image: ImageInput, path: str) -> str:
        if image.WhichOneof("source") == "content":
            if image.content.sha256 not in self._images:
                raise NotFound(
                    f"{path}.content: no file with the digest {image.content.sha256[:64]} is stored here: send it",
                    field=f"{path}.content",
                    reason="CONTENT_UNKNOWN",
                )
            return image.content.sha256
        if not image.data:
            raise invalid(f"{path}.data", "an image file", "0 bytes", reason="IMAGE_MISSING")
        if format_of(image.data) is None:
            raise invalid(f"{path}.data", "a PNG, JPEG or WebP file", "something else", reason="IMAGE_FORMAT")
        sha256 = sha256_hex(image.data)
        self._images.add(sha256)
        return sha256

    def _fingerprint(self, engine: str, layer: int = _DEFAULT_LAYER) -> pb.VisionFingerprint:
        is_siglip = engine == "siglip"
        return vision_fingerprint.to_message(
            VisionFingerprint(
                engine=engine,
                family="siglip2" if is_siglip else "qwen3_vl",
                width=GRID[2] if is_siglip else self.width,
                model_id="fake",
                weights_digest=sha256_hex(engine.encode()),
                configuration_digest=sha256_hex(b"configuration"),
                processor_digest=sha256_hex(b"processor"),
                hidden_layer=0 if is_siglip else layer,
                compute_dtype=DTYPE,
                backend=BACKEND,
            )
        )


def _statistics(values: "array[float]", width: int) -> pb.EmbedsStatistics:
    rows = [values[at : at + width] for at in range(0, len(values), width)]
    rms = [statistics.fmean(value * value for value in row) ** 0.5 for row in rows]
    return pb.EmbedsStatistics(
        token_rms=statistics.median_high(rms),
        mean=statistics.fmean(values),
        std=statistics.pstdev(values),
        tokens=len(rows),
    )
