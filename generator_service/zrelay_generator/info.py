"""What a generator says of itself."""

from functools import cache

from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import info_pb2
from zrelay_generator.acceptance import Acceptance
from zrelay_generator.board import JobBoard
from zrelay_generator.config import GeneratorConfig
from zrelay_generator.features import AVAILABLE, MISSING
from zrelay_generator.provenance import Painter
from zrelay_shared import __version__
from zrelay_shared.fingerprint import to_message
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.serving import libraries
from zrelay_shared.torch_devices import DeviceReport

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "pillow", "grpcio", "protobuf")


@cache
def _version() -> info_pb2.ServerVersion:
    """Once: looking up seven installed packages takes 6 ms."""
    return info_pb2.ServerVersion(
        service="generator", version=__version__, contract="v1", libraries=libraries(LIBRARIES)
    )


def loading_info(model_id: str) -> pb.GeneratorServiceGetInfoResponse:
    """What can be said before the model is there."""
    return pb.GeneratorServiceGetInfoResponse(
        version=_version(),
        model_id=model_id,
        features=[
            *(info_pb2.Feature(name=name, available=True, note=note) for name, note in AVAILABLE.items()),
            *(info_pb2.Feature(name=name, available=False) for name in MISSING),
        ],
    )


def ready_info(
    config: GeneratorConfig, accepts: Acceptance, painter: Painter, device: DeviceReport, board: JobBoard
) -> pb.GeneratorServiceGetInfoResponse:
    """What is known once the model is loaded."""
    info = loading_info(painter.model_id)
    info.ready = True
    info.transformer_digest = painter.transformer_digest
    info.expected_encoder.CopyFrom(to_message(accepts.encoder))
    info.defaults.CopyFrom(_defaults(accepts))
    info.limits.CopyFrom(_limits(accepts))
    info.device.CopyFrom(
        info_pb2.DeviceInfo(
            kind=device.kind,
            name=device.name,
            memory_total_bytes=device.memory_total_bytes,
            memory_free_bytes=device.memory_free_bytes,
            compute_dtype=painter.compute_dtype,
        )
    )
    info.queue.CopyFrom(
        info_pb2.QueueInfo(
            waiting=board.waiting,
            running=board.running,
            max_waiting=config.max_waiting,
            estimated_wait_s=board.estimated_wait_s,
        )
    )
    return info


def _defaults(accepts: Acceptance) -> gpb.SamplingOptions:
    defaults = accepts.sampling.defaults
    return gpb.SamplingOptions(
        width=defaults.width,
        height=defaults.height,
        num_inference_steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        cfg_normalization=0.0,
        cfg_truncation=1.0,
        shift=defaults.shift,
        num_images=1,
    )


def _limits(accepts: Acceptance) -> pb.GeneratorLimits:
    sampling = accepts.sampling
    return pb.GeneratorLimits(
        size_multiple=sampling.size_multiple,
        min_side=sampling.min_side,
        max_side=sampling.max_side,
        max_pixels=sampling.max_pixels,
        max_steps=sampling.max_steps,
        max_images=sampling.max_images,
        text_limit=accepts.text_limit,
        embeds_width=accepts.embeds_width,
        max_message_bytes=MAX_MESSAGE_BYTES,
        max_image_bytes=0,
    )
