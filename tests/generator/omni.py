"""Omni checkpoints, references and diffusers' own pipeline for the tests of Omni."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageOmniPipeline, ZImageTransformer2DModel
from PIL import Image
from torch import Tensor

from tests.helpers.images import encoded
from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import vision_pb2
from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT
from zrelay_demo.omni_folder import PARTS, write_omni_folder
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.omni.images import read_reference
from zrelay_generator.features.omni.spec import OmniSpec
from zrelay_generator.features.protocol import JobSpec, Prompt, SamplingSettings
from zrelay_shared.fingerprint import EncoderFingerprint, to_message
from zrelay_shared.torch_tensors import to_wire
from zrelay_shared.wire import Parcel


def write_demo_omni(folder: Path) -> Path:
    """The demo checkpoint with untrained SigLIP parts."""
    write_omni_folder(folder, CHECKPOINT, VISION_CHECKPOINT / "siglip", VISION_CHECKPOINT / "omni" / PARTS)
    return folder


def write_tiny_omni(folder: Path, tiny: Path, demo_omni: Path) -> Path:
    """`tiny` with a transformer that reads the grids of the demo's SigLIP; weights that all matter."""
    shutil.copytree(tiny, folder)
    for name in ("siglip", "siglip_processor"):
        shutil.copytree(demo_omni / name, folder / name)
    shutil.copyfile(demo_omni / "model_index.json", folder / "model_index.json")
    torch.manual_seed(3)
    config = ZImageTransformer2DModel.load_config(tiny / "transformer")
    transformer: Any = ZImageTransformer2DModel.from_config({**config, "siglip_feat_dim": 96})
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.1)
    transformer.save_pretrained(folder / "transformer")
    return folder


@dataclass(frozen=True)
class Words:
    """Segmented embeddings of one prompt."""

    segments: list[Tensor]

    @classmethod
    def of(cls, images: int, tokens: int, width: int, seed: int = 0) -> "Words":
        """Random ones as long as an encoder's: a few tokens before and between images, `tokens` for the words."""
        lengths = [4, *[2] * (images - 1), tokens, 2] if images else [tokens]
        generator = torch.Generator().manual_seed(seed)
        return cls([torch.randn(length, width, generator=generator) * 5.0 for length in lengths])

    @property
    def joined(self) -> Tensor:
        return torch.cat(self.segments)

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.joined, tuple(map(len, self.segments)))


class Oracle:
    """ZImageOmniPipeline on a folder; its VAE in bfloat16, which is all that it can encode with."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.pipeline: Any = ZImageOmniPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None, dtype=dtype)
        self.pipeline.vae.to(torch.bfloat16)
        self.pipeline.set_progress_bar_config(disable=True)

    def grids(self, pictures: Sequence[Image.Image], area: int) -> list[Tensor]:
        """The SigLIP grids of pictures, resized as the pipeline does."""
        resize = self.pipeline.image_processor._resize_to_target_area
        resized = [resize(one, area) if one.width * one.height > 1 << 20 else one for one in pictures]
        with torch.no_grad():
            (found,) = self.pipeline.prepare_siglip_embeds(resized, 1, torch.device("cpu"), torch.float32)
        return list(found)

    def latents(
        self, pictures: Sequence[Image.Image], words: Words, sampling: SamplingSettings, negative: Words | None = None
    ) -> Tensor:
        """[16, h, w] of one image."""
        dtype = self.pipeline.transformer.dtype
        self.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=sampling.shift)
        found: Tensor = self.pipeline(
            image=list(pictures) or None,
            prompt_embeds=[[segment.to(dtype) for segment in words.segments]],
            negative_prompt_embeds=[] if negative is None else [[segment.to(dtype) for segment in negative.segments]],
            width=sampling.width,
            height=sampling.height,
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            cfg_normalization=sampling.cfg_normalization,
            cfg_truncation=sampling.cfg_truncation,
            generator=torch.Generator("cpu").manual_seed(sampling.seed),
            output_type="latent",
        ).images
        return found[0]


def omni_job(
    pictures: Sequence[Image.Image],
    grids: Sequence[Tensor],
    words: Words,
    sampling: SamplingSettings,
    negative: Words | None,
) -> JobSpec:
    """A job with references, as a parsed request holds it."""
    area = sampling.width * sampling.height
    read = [read_reference(encoded(one), area, 16, 1024, 1 << 24, field="image") for one in pictures]
    guidance = () if negative is None else (GuidanceSpec(negative.prompt),)
    return JobSpec(words.prompt, sampling, features=(OmniSpec(tuple(read), tuple(grids)), *guidance))


def request_with(
    fingerprint: EncoderFingerprint,
    words: Words,
    files: Sequence[bytes],
    grids: Sequence[Tensor],
    negative: Words | None = None,
    **sampling: Any,
) -> Parcel[pb.GenerateRequest]:
    """A GenerateRequest with references, as a client sends it."""
    message = pb.GenerateRequest()
    parcel, spec = Parcel(message), message.spec
    spec.sampling.CopyFrom(gpb.SamplingOptions(**sampling))
    for name, given in (("prompt", words), ("negative_prompt", negative)):
        if given is not None:
            into = getattr(spec, name).prompt_embeds
            into.fingerprint.CopyFrom(to_message(fingerprint))
            for segment in given.segments:
                to_wire(parcel, into.segments.add().prompt_embeds, segment)
    spec.omni.SetInParent()
    for data in files:
        spec.omni.images.add(data=data)
    for grid in grids:
        embeds = spec.omni.siglip_embeds.add()
        embeds.fingerprint.engine = vision_pb2.VISION_ENGINE_SIGLIP
        embeds.fingerprint.digest = "5" * 64
        to_wire(parcel, embeds.grid, grid)
    return parcel
