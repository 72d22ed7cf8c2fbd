"""What a generator says of itself."""

from pathlib import Path

from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import info_pb2
from zrelay_generator.cost.model import CostModel
from zrelay_generator.features.acceptance import Acceptance, OmniLimits
from zrelay_generator.features.offered import AVAILABLE, MISSING, OMNI
from zrelay_generator.images.provenance import Painter
from zrelay_generator.jobs.board import JobBoard
from zrelay_generator.settings import GeneratorConfig
from zrelay_shared.fingerprint import to_message
from zrelay_shared.limits import MAX_MESSAGE_BYTES, MAX_OMNI_IMAGES
from zrelay_shared.service.info import device_info, server_version
from zrelay_shared.torch_devices import DeviceReport

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "pillow", "grpcio", "protobuf")

_KEPT = ("jobs.submit", "jobs.watch", "jobs.get", "jobs.list", "content.upload")
_IN_MEMORY = "in memory: lost when the process ends"


def loading_info(
    model_id: str, state: Path | None, omni: OmniLimits | None = None
) -> pb.GeneratorServiceGetInfoResponse:
    """What can be said before the model is there; `omni` is known with it."""
    kept = "" if state is not None else _IN_MEMORY
    return pb.GeneratorServiceGetInfoResponse(
        version=server_version("generator", LIBRARIES),
        model_id=model_id,
        features=[
            *(
                info_pb2.Feature(name=name, available=True, note=kept if name in _KEPT else note)
                for name, note in AVAILABLE.items()
            ),
            *(info_pb2.Feature(name=name, available=False) for name in MISSING),
            _omni(omni),
        ],
    )


def _omni(limits: OmniLimits | None) -> info_pb2.Feature:
    if limits is None:
        return info_pb2.Feature(name=OMNI, available=False, note="needs a transformer with SigLIP parts")
    note = (
        f"at most {MAX_OMNI_IMAGES} references of up to {limits.max_side} pixels a side, with SigLIP grids "
        f"{limits.siglip_width} wide"
    )
    return info_pb2.Feature(name=OMNI, available=True, note=note)


def ready_info(
    config: GeneratorConfig,
    accepts: Acceptance,
    painter: Painter,
    device: DeviceReport,
    board: JobBoard,
    cost: CostModel,
) -> pb.GeneratorServiceGetInfoResponse:
    """What is known once the model is loaded."""
    info = loading_info(painter.model_id, config.state, accepts.omni)
    info.ready = True
    info.transformer_digest, info.vae_digest = painter.transformer_digest, painter.vae_digest
    info.expected_encoder.CopyFrom(to_message(accepts.encoder))
    info.defaults.CopyFrom(_defaults(accepts))
    info.limits.CopyFrom(_limits(accepts))
    info.device.CopyFrom(device_info(device, painter.compute_dtype))
    info.queue.CopyFrom(
        info_pb2.QueueInfo(
            waiting=board.workload.waiting,
            running=board.workload.running,
            max_waiting=config.max_waiting,
            estimated_wait_s=board.workload.total_s,
        )
    )
    info.cost.CopyFrom(_cost(cost))
    return info


def _cost(cost: CostModel) -> pb.CostModel:
    return pb.CostModel(
        forward_s=cost.forward_base_s,
        forward_s_per_token=cost.forward_s_per_token,
        forward_s_per_token_squared=cost.forward_s_per_token_squared,
        decode_s=cost.decode_base_s,
        decode_s_per_pixel=cost.decode_s_per_pixel,
        bytes_per_token=cost.bytes_per_token,
        bytes_per_pixel=cost.bytes_per_pixel,
    )


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
        max_image_bytes=accepts.max_image_bytes,
    )
