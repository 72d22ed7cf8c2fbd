"""Checkpoints and jobs for the generator's tests: the bundled demo checkpoint, and a tiny one of random weights."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from PIL import Image
from torch import Tensor

from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import generator_pb2 as pb
from zrelay_demo import CHECKPOINT
from zrelay_generator.features.protocol import SamplingSettings
from zrelay_generator.model.identity import identify
from zrelay_generator.model.loading import LoadedModel, load_model
from zrelay_shared.fingerprint import EncoderFingerprint, to_message
from zrelay_shared.torch_tensors import to_wire
from zrelay_shared.wire import Parcel

from .engine_harness import spec
from .generator_client import caller, serve, serve_kept, shared
from .helpers import make_embeds as embeds_of
from .helpers import make_sampling
from .managed_jobs import manager
from .omni import write_demo_omni, write_tiny_omni
from .stores import opened

__all__ = ["caller", "manager", "opened", "serve", "serve_kept", "shared", "spec"]
"""Fixtures that are defined elsewhere."""


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """One: on models this small the threads of a busy machine wait for each other many times longer than they work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo() -> Path:
    """The bundled checkpoint: 1 refiner layer, width 128, 128 x 128."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder without text encoder: 2 refiner layers, width 48, random weights that all matter."""
    torch.manual_seed(0)
    transformer: Any = ZImageTransformer2DModel(
        dim=64,
        n_layers=3,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=48,
        axes_dims=[8, 12, 12],
        axes_lens=[256, 64, 64],
    )
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.36,
        shift_factor=0.12,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    pipeline: Any = ZImagePipeline(scheduler, vae, None, None, transformer)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def demo_omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint with untrained SigLIP parts."""
    return write_demo_omni(tmp_path_factory.mktemp("demo_omni") / "omni")


@pytest.fixture(scope="session")
def tiny_omni(tmp_path_factory: pytest.TempPathFactory, tiny: Path, demo_omni: Path) -> Path:
    """`tiny` with SigLIP parts."""
    return write_tiny_omni(tmp_path_factory.mktemp("tiny_omni") / "omni", tiny, demo_omni)


@pytest.fixture(scope="session")
def load() -> Callable[[Path, torch.dtype], LoadedModel]:
    """Loads a checkpoint on the CPU, once for each dtype."""
    known: dict[tuple[Path, torch.dtype], LoadedModel] = {}

    def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
        if (folder, dtype) not in known:
            known[folder, dtype] = load_model(folder, torch.device("cpu"), dtype)
        return known[folder, dtype]

    return loaded


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Tensor]:
    """diffusers' own pipeline on a checkpoint: latents [n, 16, h, w] for embeddings and a seed."""
    known: dict[tuple[Path, torch.dtype], Any] = {}

    def latents(
        folder: Path,
        embeds: Tensor,
        sampling: SamplingSettings,
        *,
        dtype: torch.dtype = torch.float32,
        negative: Tensor | None = None,
        output_type: str = "latent",
    ) -> Tensor:
        if (folder, dtype) not in known:
            parts = {"text_encoder": None, "tokenizer": None, "dtype": dtype}
            known[folder, dtype] = ZImagePipeline.from_pretrained(folder, **parts)
            known[folder, dtype].set_progress_bar_config(disable=True)
        pipeline = known[folder, dtype]
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=sampling.shift)
        count = sampling.num_images
        result: Tensor = pipeline(
            prompt_embeds=[embeds.to(dtype)] * count,
            negative_prompt_embeds=None if negative is None else [negative.to(dtype)] * count,
            width=sampling.width,
            height=sampling.height,
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            cfg_normalization=sampling.cfg_normalization,
            cfg_truncation=sampling.cfg_truncation,
            generator=[torch.Generator("cpu").manual_seed(sampling.seed + i) for i in range(count)],
            output_type=output_type,
        ).images
        return result

    return latents


@pytest.fixture(scope="session")
def sampling() -> Callable[..., SamplingSettings]:
    return make_sampling


@pytest.fixture(scope="session")
def provenance_in() -> Callable[[bytes], str]:
    """Reads the provenance JSON out of a file, as any reader of PNG or EXIF would; "" where there is none."""

    def read(data: bytes) -> str:
        image = Image.open(io.BytesIO(data))
        image.load()
        if image.format == "PNG":
            return str(image.info.get("zrelay", ""))
        comment: bytes = image.getexif().get_ifd(0x8769).get(0x9286, b"")
        return comment.removeprefix(b"ASCII\0\0\0").decode("ascii")

    return read


@pytest.fixture(scope="session")
def embeds() -> Callable[..., Tensor]:
    return embeds_of


@pytest.fixture(scope="session")
def fingerprint(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> EncoderFingerprint:
    expected = identify(demo, "demo", tmp_path_factory.mktemp("cache")).encoder
    return replace(expected, model_id="/home/somebody/demo", compute_dtype="bfloat16", backend="torch-cpu")


@pytest.fixture(scope="session")
def request_of(fingerprint: EncoderFingerprint) -> Callable[..., Parcel[pb.GenerateRequest]]:
    """A GenerateRequest for the demo checkpoint: embeddings as an encoder sends them, sampling as given."""

    def request(
        tensor: Tensor | None = None, *, negative: Tensor | None = None, request_id: str = "", **sampling: Any
    ) -> Parcel[pb.GenerateRequest]:
        message = pb.GenerateRequest(request_id=request_id)
        message.spec.sampling.CopyFrom(gpb.SamplingOptions(**sampling))
        parcel = Parcel(message)
        given = {"prompt": embeds_of(20, 128) if tensor is None else tensor, "negative_prompt": negative}
        for name, value in given.items():
            if value is None:
                continue
            into = getattr(message.spec, name).prompt_embeds
            into.fingerprint.CopyFrom(to_message(fingerprint))
            to_wire(parcel, into.segments.add().prompt_embeds, value.bfloat16())
        return parcel

    return request
