"""The same weights with another configuration: what people see of it, with the real services."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configurations import ABSENT, edited, with_config
from tests.helpers.jobs import PROMPT, SMALL
from tests.helpers.refusals import refused_async
from zrelay_client import AsyncClient, Embeds, FailedPrecondition
from zrelay_client.stack.bundle import demo_checkpoint
from zrelay_encoder.api.servicer import EncoderServicer
from zrelay_encoder.config import EncoderConfig
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.service.roles import GeneratorConfig

from .conftest import Services, Zrelay, provenance_of


def demo_with(into: Path, component: str, **edit: Any) -> Path:
    """Returns the demo checkpoint with an edited configuration of one component."""
    demo = demo_checkpoint()
    config = json.loads((demo / component / "config.json").read_text())
    return with_config(demo, into / "demo", edited(config, edit), component=component)


@pytest.fixture(scope="module")
def turned(services: Services, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder of the demo's weights with another base of its rotary embedding."""
    folder = demo_with(
        tmp_path_factory.mktemp("turned"), "text_encoder", rope_parameters=ABSENT, rope_theta=1e6, rope_scaling=None
    )
    return services.start(EncoderServicer(EncoderConfig(model=folder, device="cpu", threads=1)))


@pytest.fixture(scope="module")
def respelled(services: Services, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder of the demo in the spelling of transformers 4."""
    folder = demo_with(
        tmp_path_factory.mktemp("respelled"),
        "text_encoder",
        rope_parameters=ABSENT,
        rope_theta=10000,
        rope_scaling=None,
        torch_dtype="bfloat16",
    )
    return services.start(EncoderServicer(EncoderConfig(model=folder, device="cpu", threads=1)))


async def test_another_rope_base_is_experimental_and_named(services: Services, turned: str, tmp_path: Path) -> None:
    async with AsyncClient(encoder=turned, generator=services.generator) as client:
        made = await client.generate(PROMPT, **SMALL)
        embeds = await client.encode(PROMPT)
    assert made.encoder_relation == "experimental"
    assert [each.split(":")[0] for each in made.encoder_differences] == ["configuration_digest"]
    provenance = provenance_of(made.images[0])
    assert provenance["encoder"]["configuration_digest"] == embeds.fingerprint.configuration_digest
    assert len(provenance["generator"]["configuration_digest"]) == 64
    embeds.save(tmp_path / "embeds.safetensors")
    assert Embeds.load(tmp_path / "embeds.safetensors").fingerprint == embeds.fingerprint


async def test_another_spelling_is_exact(services: Services, respelled: str) -> None:
    async with AsyncClient(encoder=respelled, generator=services.generator) as client:
        assert (await client.generate(PROMPT, **SMALL)).encoder_relation == "exact"


async def test_embeddings_of_an_earlier_release_are_unverified(services: Services, tmp_path: Path) -> None:
    """Their file has no configuration_digest."""
    file = tmp_path / "embeds.safetensors"
    async with AsyncClient(encoder=services.encoder, generator=services.generator) as client:
        (await client.encode(PROMPT)).save(file)
        whole = file.read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        embeds = json.loads(header["__metadata__"]["prompt_embeds"])
        assert embeds["fingerprint"].pop("configuration_digest")
        header["__metadata__"]["prompt_embeds"] = json.dumps(embeds)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        made = await client.generate(Embeds.load(file), **SMALL)
    assert made.encoder_relation == "unverified"
    assert [each.split(":")[0] for each in made.encoder_differences] == ["configuration_digest"]


async def test_doctor_and_info_name_it(services: Services, turned: str, respelled: str, zrelay: Zrelay) -> None:
    ran = await zrelay("doctor", "--encoder", turned, "--generator", services.generator)
    assert "warn  encoder fits generator: experimental; configuration_digest: " in ran.stdout
    ran = await zrelay("doctor", *services.flags, "--encoder", turned)
    assert "never: it makes other embeddings; configuration_digest: " in ran.stdout
    ran = await zrelay("doctor", *services.flags, "--encoder", respelled)
    assert "stands in: the same embeddings as" in ran.stdout
    said = json.loads((await zrelay("info", "--json", *services.flags)).stdout)
    assert len(said["generator"]["configuration_digest"]) == 64
    expected = said["generator"]["expected_encoder"]["configuration_digest"]
    assert said["encoder"]["fingerprint"]["configuration_digest"] == expected != ""


async def test_a_batch_is_not_split_over_generators_of_other_time_scales(services: Services, tmp_path: Path) -> None:
    folder = demo_with(tmp_path, "transformer", t_scale=500.0)
    config = GeneratorConfig(model=folder, device="cpu", threads=1, state=tmp_path / "state")
    other = services.start(GeneratorServicer(config))
    async with AsyncClient(encoder=services.encoder, generator=[services.generator, other]) as client:
        batch = client.generate_many([PROMPT], seeds=[1, 2], **SMALL)
        refusal = await refused_async(anext(batch), FailedPrecondition, reason="GENERATORS_DIFFER")
    assert refusal.metadata["field"] == "configuration_digest"
