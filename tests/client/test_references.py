"""Pictures painted after images, blended into the prompt or beside it (Omni), over real services."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.images import png
from tests.helpers.jobs import PROMPT, QUICK, SMALL
from zrelay_client import (
    AsyncClient,
    Client,
    FailedPrecondition,
    FeatureMissing,
    InvalidArgument,
    read_provenance,
)
from zrelay_client._vision.references import encode_options_for
from zrelay_client.options import EncodeOptions, GenerateOptions

from .conftest import RecordingGenerator, Services, Zrelay, provenance_of

DETERMINISTIC: dict[str, Any] = {**QUICK, "deterministic": True}
UNSEEDED: dict[str, Any] = {**SMALL, "deterministic": True}


A, B = png(128, 96, seed=1), png(80, 200, seed=3)


@pytest.fixture
async def client(services: Services, vision: str) -> Any:
    async with AsyncClient(**services.endpoints, vision=vision) as client:
        yield client


@pytest.fixture
async def painter(services: Services, vision: str, omni: str) -> Any:
    """The same with a generator that paints after images."""
    async with AsyncClient(encoder=services.encoder, vision=vision, generator=omni) as client:
        yield client


async def test_a_reference_is_blended_and_recorded(client: Any) -> None:
    plain = await client.generate(PROMPT, **DETERMINISTIC)
    blended = await client.generate(PROMPT, reference=A, conditioning={"alpha": 0.4, "blend": "slerp"}, **DETERMINISTIC)
    same = await client.generate(PROMPT, reference=A, conditioning={"alpha": 0.0}, **DETERMINISTIC)
    assert same.images[0].pixels_sha256 == plain.images[0].pixels_sha256 != blended.images[0].pixels_sha256
    kind, what = provenance_of(blended.images[0])["encoder"]["modifications"]
    assert kind == "conditioning" and "slerp alpha=0.4" in what and hashlib.sha256(A).hexdigest()[:12] in what
    assert provenance_of(plain.images[0])["encoder"]["modifications"] == []
    assert blended.encoder_relation == "experimental" and blended.timings.vision_s > 0 == plain.timings.vision_s


async def test_a_path_states_their_file_and_the_two_calls_are_the_same(client: Any, empty_home: Path) -> None:
    Path("a.png").write_bytes(A)
    (states,) = await client.encode_images([A], engine="qwen3_vl")
    states.save("a.safetensors")
    by_hand = await client.condition_prompt(await client.encode(PROMPT), A, alpha=0.3)
    pictures = [await client.generate(by_hand.embeds, **DETERMINISTIC)]
    for reference in ("a.png", A, states, "a.safetensors"):
        pictures.append(await client.generate(PROMPT, reference=reference, **DETERMINISTIC))
    assert len({result.images[0].pixels_sha256 for result in pictures}) == 1


async def test_many_seeds_share_one_conditioned_prompt(client: Any) -> None:
    seen = [one async for one in client.generate_many(PROMPT, seeds=[1, 2, 3], reference=A, **UNSEEDED)]
    assert {one.error for one in seen} == {None}
    embeds = {id(one.result.embeds) for one in seen}
    assert len(embeds) == 1
    single = await client.generate(PROMPT, reference=A, **{**DETERMINISTIC, "seed": 2})
    (second,) = [one.result for one in seen if one.seed == 2]
    assert second.images[0].pixels_sha256 == single.images[0].pixels_sha256


async def test_omni_paints_after_images_that_are_sent_once(painter: Any, omni_generator: RecordingGenerator) -> None:
    omni_generator.take_uploads()
    first = await painter.generate(PROMPT, omni=[A, B], **DETERMINISTIC)
    other = await painter.generate(PROMPT, omni=[B, A], **DETERMINISTIC)
    plain = await painter.generate(PROMPT, **DETERMINISTIC)
    assert provenance_of(first.images[0])["omni"]["file_sha256"] == [
        hashlib.sha256(data).hexdigest() for data in (A, B)
    ]
    assert len({result.images[0].pixels_sha256 for result in (first, other, plain)}) == 3
    again = await painter.generate(first.embeds, **DETERMINISTIC)
    assert again.images[0].pixels_sha256 == first.images[0].pixels_sha256
    seen = [one async for one in painter.generate_many(PROMPT, seeds=[7, 8], omni=[A, B], **UNSEEDED)]
    uploads = omni_generator.take_uploads()
    assert len(uploads) == len(set(uploads)), "each content is sent once"
    assert {hashlib.sha256(data).hexdigest() for data in (A, B) if len(data) >= 2048} <= set(uploads)
    contents = first.embeds.contents.items()
    grids = {content.sha256 for name, content in contents if name.startswith("omni.grids.")}
    assert len(grids) == 2 and grids <= set(uploads), "grids are sent once as well"
    assert [one.result.images[0].pixels_sha256 for one in seen if one.seed == 7] == [first.images[0].pixels_sha256]


async def test_omni_with_guidance_and_as_a_job(painter: Any) -> None:
    guided = await painter.generate(PROMPT, omni=[A], guidance_scale=2.0, **DETERMINISTIC)
    assert provenance_of(guided.images[0])["negative_prompt"] == ""
    embeds = await painter.prepare(PROMPT, omni=[A], **DETERMINISTIC)
    job = await painter.submit(embeds, **DETERMINISTIC)
    (image,) = await painter.jobs.fetch(job.job_id)
    single = await painter.generate(PROMPT, omni=[A], **DETERMINISTIC)
    assert image.pixels_sha256 == single.images[0].pixels_sha256


async def test_a_large_reference_is_read_at_the_area_that_is_painted(painter: Any) -> None:
    large = png(1100, 1000)
    one = await painter.generate(PROMPT, omni=[large], **DETERMINISTIC)
    wide = await painter.generate(PROMPT, omni=[large], **{**DETERMINISTIC, "width": 128})
    shapes = [grid.shape for result in (one, wide) for grid in result.embeds.omni.grids]
    assert shapes[0] == shapes[1] and one.images[0].width == 64 and wide.images[0].width == 128


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"reference": A, "conditioning": {"alpha": 1.5}}, "ALPHA_INVALID"),
        ({"reference": A, "conditioning": {"alpha": float("nan")}}, "ALPHA_INVALID"),
        ({"reference": A, "omni": [B]}, "REFERENCE_AND_OMNI"),
        ({"conditioning": {"alpha": 0.5}}, "REFERENCE_MISSING"),
        ({"omni": [A] * 9}, "REFERENCE_COUNT"),
    ],
)
async def test_invalid_options_are_refused_before_any_call(options: Any, reason: str) -> None:
    async with AsyncClient(encoder="127.0.0.1:1", vision="127.0.0.1:1", generator="127.0.0.1:1") as client:
        with pytest.raises(InvalidArgument) as refused:
            await client.generate(PROMPT, **options)
    assert refused.value.reason == reason


def test_a_number_of_places_that_differs_from_the_omni_images_is_refused() -> None:
    expected = "image_count: expected 2 places in the prompt, one for each omni image, got 3"
    with pytest.raises(InvalidArgument, match=expected):
        encode_options_for(GenerateOptions(omni=[A, B]), EncodeOptions(image_count=3))


async def test_wrong_kinds_are_type_errors(client: Any) -> None:
    with pytest.raises(TypeError, match="did you mean 'alpha'"):
        await client.generate(PROMPT, reference=A, conditioning={"alfa": 0.5})
    with pytest.raises(TypeError, match="put it into a list"):
        await client.generate(PROMPT, omni=A)


async def test_a_generator_without_siglip_parts_is_refused_before_anything_is_computed(client: Any) -> None:
    with pytest.raises(FeatureMissing, match=r"no SigLIP parts: serve a Z-Image Omni checkpoint") as refused:
        await client.generate(PROMPT, omni=[A], **DETERMINISTIC)
    assert refused.value.metadata["feature"] == "generate.omni"


async def test_an_encoder_of_another_width_is_refused(services: Services, vision: str, stranger: str) -> None:
    generator = services.generator
    async with AsyncClient(encoder=stranger, vision=vision, generator=generator) as client:
        with pytest.raises(FailedPrecondition) as refused:
            await client.generate(PROMPT, reference=A, **DETERMINISTIC)
    assert refused.value.reason == "STATES_WIDTH" and "width" in refused.value.message, refused.value.message


def test_a_missing_vision_service_is_refused(services: Services) -> None:
    with (
        Client(**services.endpoints) as client,
        pytest.raises(InvalidArgument, match="vision: this client has no endpoint"),
    ):
        client.generate(PROMPT, reference=A, **DETERMINISTIC)


async def test_the_command_line_has_both(services: Services, vision: str, omni: str, zrelay: Zrelay) -> None:
    Path("a.png").write_bytes(A)
    Path("b.png").write_bytes(B)
    common = ["--encoder", services.encoder, "--vision", vision]
    quick = ["--size", "64x64", "--num-inference-steps", "2", "--seed", "7"]
    here = ["--generator", services.generator]
    flags = ["--alpha", "0.5", "--normalization", "global", "--vision-tokens", "image-only"]
    ran = await zrelay("generate", "fox", "--reference", "a.png", *flags, *common, *here, *quick)
    assert (ran.returncode, ran.stdout) == (0, "fox-7.png\n"), ran.stderr
    assert "blended with a reference" in ran.stderr and ", vision " in ran.stderr
    assert "alpha=0.5 global" in read_provenance(Path("fox-7.png").read_bytes())["encoder"]["modifications"][1]  # type: ignore[index]
    there = ["--omni", "a.png", "--omni", "b.png", "--generator", omni]
    ran = await zrelay("generate", "fox", "-o", "o.png", "--count", "2", *there, *common, *quick)
    assert (ran.returncode, sorted(ran.stdout.split())) == (0, ["o-1.png", "o-2.png"]), ran.stderr
    ran = await zrelay("generate", "fox", "--detach", "--count", "2", *there, *common, *quick)
    assert ran.returncode == 0 and len(ran.stdout.split()) == 2, ran.stderr


async def test_the_command_line_says_what_is_wrong(services: Services, vision: str, zrelay: Zrelay) -> None:
    Path("a.png").write_bytes(A)
    Path("broken.png").write_bytes(A[:60])
    near = ["--encoder", services.encoder, "--generator", services.generator]
    seeing = [*near, "--vision", vision]
    for flags, code, says in (
        (["--reference", "a.png", "--omni", "a.png", *seeing], 2, "choose one"),
        (["--vision-layer", "-3", *seeing], 2, "--vision-layer is for reference images: add --reference IMAGE"),
        (["--reference", "a.png", "--token-weights", "1,x", *seeing], 2, "separated by commas, got '1,x'"),
        (["--reference", "a.png", *near], 3, "no vision is configured: start it here with `zrelay up --detach`"),
        (["--reference", "a.png", "--alpha", "2", *seeing], 3, "alpha: expected a share"),
        (["--reference", "gone.png", *seeing], 5, "gone.png: No such file"),
        (["--reference", "broken.png", *seeing], 3, "broken.png: expected a whole PNG file"),
        (["--reference", "a.png", "--outlier-mask", "clamp", *seeing], 3, "zrelay calibrate"),
        (["--omni", "a.png", *seeing], 3, "or blend one image into the prompt with --reference instead"),
    ):
        ran = await zrelay("generate", "fox", *flags)
        assert ran.returncode == code and says in ran.stderr, ran.stderr
    assert not list(Path().glob("fox*"))
