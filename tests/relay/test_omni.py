"""Three services on one picture after references: what comes out is what ZImageOmniPipeline paints by itself."""

import io
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageOmniPipeline
from google.protobuf.message import Message
from PIL import Image

from tests.helpers.images import encoded
from tests.helpers.jobs import PROMPT
from tests.helpers.servers import ServerThread
from zrelay.v1 import content_pb2, encoder_pb2, generation_pb2, generator_pb2, tensor_pb2, vision_pb2
from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT
from zrelay_demo.omni_folder import PARTS, write_omni_folder
from zrelay_encoder.api.servicer import EncoderServicer
from zrelay_encoder.config import EncoderConfig
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.channels import dial
from zrelay_shared.rpc import Stub
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.wire import Parcel
from zrelay_vision.api.servicer import VisionServicer
from zrelay_vision.config import VisionConfig

F32 = tensor_pb2.TENSOR_DTYPE_F32
NEGATIVE = ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("omni") / "omni"
    write_omni_folder(folder, CHECKPOINT, VISION_CHECKPOINT / "siglip", VISION_CHECKPOINT / "omni" / PARTS)
    return folder


@pytest.fixture(scope="module")
def endpoints(folder: Path) -> Iterator[dict[str, str]]:
    """Three services of that folder, in float32."""
    common: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
    thread = ServerThread()
    yield {
        "encoder": thread.start(EncoderServicer(EncoderConfig(model=folder, **common))),
        "vision": thread.start(VisionServicer(VisionConfig(siglip=folder, **common))),
        "generator": thread.start(GeneratorServicer(GeneratorConfig(model=folder, state=None, **common))),
    }
    thread.stop()


SERVICES = {"encoder": encoder_pb2, "vision": vision_pb2, "generator": generator_pb2}


def pictures() -> list[Image.Image]:
    small = [Image.new("RGB", (3, 2)), Image.new("RGB", (2, 3))]
    for at, image in enumerate(small):
        image.putdata([((i * 67 + at * 40) % 256, (i * 131) % 256, (i * 29 + 90) % 256) for i in range(6)])
    return [
        small[0].resize((150, 100), Image.Resampling.BICUBIC),
        small[1].resize((1020, 1100), Image.Resampling.BICUBIC),  # above a megapixel: resized to the picture's area
    ]


def painted_by_diffusers(folder: Path, images: Sequence[Image.Image], guidance: float) -> torch.Tensor:
    """[H, W, 3] levels; the VAE, which can only encode in bfloat16, decodes in float32."""
    pipeline: Any = ZImageOmniPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.to(torch.bfloat16)
    latents = pipeline(
        image=list(images),
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=128,
        height=128,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    vae = pipeline.vae.to(torch.float32)
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample[0]
    pixels: torch.Tensor = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0)
    return pixels


@pytest.mark.parametrize("guidance", [0.0, 2.0])
async def test_the_relay_paints_what_the_pipeline_paints(
    folder: Path, endpoints: dict[str, str], guidance: float
) -> None:
    images = pictures()
    sent = [content_pb2.ImageInput(data=encoded(image)) for image in images]
    async with AsyncExitStack() as stack:
        stubs = {}
        for role, endpoint in endpoints.items():
            (descriptor,) = SERVICES[role].DESCRIPTOR.services_by_name.values()
            stubs[role] = Stub(await stack.enter_async_context(dial(endpoint)), descriptor)

        async def call(role: str, method: str, request: Message, reply: type[Message]) -> Parcel[Any]:
            return await stubs[role].call(method, request, reply, timeout=60)

        asked = [encoder_pb2.Prompt(text=PROMPT, image_count=2)]
        asked += [encoder_pb2.Prompt(text=NEGATIVE, image_count=2, allow_empty=True)] if guidance else []
        encode = encoder_pb2.EncodePromptsRequest(prompts=asked, options=encoder_pb2.EncodeOptions(dtype=F32))
        words = await call("encoder", "EncodePrompts", encode, encoder_pb2.EncodePromptsResponse)
        see = vision_pb2.EncodeImagesRequest(
            images=sent, engine=vision_pb2.VISION_ENGINE_SIGLIP, target_area=128 * 128, dtype=F32
        )
        seen = await call("vision", "EncodeImages", see, vision_pb2.EncodeImagesResponse)

        spec = generation_pb2.GenerationSpec(
            sampling=generation_pb2.SamplingOptions(num_inference_steps=3, seed=5, guidance_scale=guidance),
            omni=generation_pb2.OmniReferences(
                images=sent, siglip_embeds=[result.siglip_embeds for result in seen.message.results]
            ),
        )
        for name, result in zip(("prompt", "negative_prompt"), words.message.results, strict=False):
            getattr(spec, name).prompt_embeds.CopyFrom(result.prompt_embeds)
        request = Parcel(generator_pb2.GenerateRequest(spec=spec), words, seen)
        events = [
            parcel.message.event
            async for parcel in stubs["generator"].stream(
                "Generate", request, generator_pb2.GenerateResponse, timeout=60
            )
        ]
    (found,) = [event.image for event in events if event.WhichOneof("event") == "image"]
    data = Image.open(io.BytesIO(found.data)).tobytes()
    ours = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(128, 128, 3).float()
    apart = (ours - painted_by_diffusers(folder, images, guidance)).abs()
    assert apart.max() <= 1 and apart.ne(0).float().mean() <= 0.001
    assert ours.std() > 1
