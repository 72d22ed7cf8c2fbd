"""`zrelay vision` and the client's calls behind it, against a real vision service on the tiny checkpoints."""

import hashlib
import json
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.helpers.images import solid_png
from zrelay_client import AsyncClient, Client, Embeds, ImageEmbeds, InvalidArgument, PayloadCorrupt
from zrelay_client import image_embeds as vision_embeds
from zrelay_client.stack.bundle import demo_checkpoint, vision_model
from zrelay_demo import VISION_CHECKPOINT
from zrelay_vision.api.servicer import VisionServicer
from zrelay_vision.config import VisionConfig

from .conftest import Services, Zrelay

RED, BLUE = solid_png((200, 30, 30)), solid_png((30, 30, 200), 200, 90)


@pytest.fixture
def pictures(empty_home: Path) -> tuple[str, str]:
    """Two image files in the working folder."""
    Path("red.png").write_bytes(RED)
    Path("blue.png").write_bytes(BLUE)
    return "red.png", "blue.png"


async def test_states_to_a_file_and_back(zrelay: Zrelay, vision: str, pictures: tuple[str, str]) -> None:
    ran = await zrelay("vision", "encode", *pictures, "-o", "states.safetensors", "--vision", vision, "--json")
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["path"] == "states.safetensors"
    assert [one["image_sha256"] for one in said["images"]] == [hashlib.sha256(data).hexdigest() for data in (RED, BLUE)]
    assert {(one["engine"], one["tokens"], one["hidden_layer"]) for one in said["images"]} == {("qwen3_vl", "full", -2)}
    red, blue = vision_embeds.load("states.safetensors")
    assert [list(red.shape), list(blue.shape)] == [one["shape"] for one in said["images"]]
    assert red.fingerprint.digest == said["images"][0]["fingerprint"]
    with safe_open("states.safetensors", "pt") as file:
        assert set(file.keys()) == {"hidden_states.0", "hidden_states.1"}
        assert file.metadata()["format"] == "zrelay.vision_embeds.v1"
        assert list(file.get_tensor("hidden_states.1").shape) == list(blue.shape)


async def test_a_grid_to_a_file(zrelay: Zrelay, vision: str, pictures: tuple[str, str]) -> None:
    ran = await zrelay(
        "vision", "encode", "blue.png", "-o", "grid.safetensors", "--engine", "siglip", "--vision", vision
    )
    assert ran.returncode == 0 and ran.stdout == "grid.safetensors\n", ran.stderr
    grid = ImageEmbeds.load("grid.safetensors")
    rows, columns, width = grid.shape
    assert (grid.engine, width, grid.tokens) == ("siglip", 96, "") and rows < columns and rows * columns <= 64
    assert f"siglip {rows} x {columns} x 96" in ran.stderr


async def test_options_reach_the_engine(zrelay: Zrelay, vision: str, pictures: tuple[str, str]) -> None:
    flags = ["--layer", "-3", "--tokens", "image-no-markers", "--text", "a red circle", "--system-prompt", "be brief"]
    ran = await zrelay("vision", "encode", "red.png", "-o", "a.safetensors", "--vision", vision, "--json", *flags)
    (one,) = json.loads(ran.stdout)["images"]
    assert (one["hidden_layer"], one["tokens"], one["shape"]) == (-3, "image_no_markers", [16, 128])


async def test_a_prompt_file_is_conditioned_and_generated(
    services: Services, zrelay: Zrelay, vision: str, pictures: tuple[str, str]
) -> None:
    """Two steps, through files, make the image that `generate --reference` makes at once."""
    where, quick = ["--vision", vision], ["--size", "64x64", "--num-inference-steps", "2", "--seed", "1"]
    blend = ["--alpha", "0.5", "--blend", "style-delta"]
    ran = await zrelay("encode", "a red circle", "-o", "prompt.safetensors", "--encoder", services.encoder)
    assert ran.returncode == 0, ran.stderr
    command = ["vision", "condition", "prompt.safetensors", "red.png", "-o", "blended.safetensors", *blend, *where]
    ran = await zrelay(*command, "--json")
    assert ran.returncode == 0, ran.stderr
    values = json.loads(ran.stdout)
    assert values["path"] == "blended.safetensors" and values["modifications"][0] == "conditioning"
    assert values["image_sha256"] == hashlib.sha256(RED).hexdigest()
    assert (await zrelay(*command)).returncode == 5, "the file exists already"
    generator = ["--generator", services.generator]
    by_file = await zrelay("generate", "--prompt-embeds", "blended.safetensors", *quick, *generator, "--json")
    at_once = await zrelay(
        "generate", "a red circle", "--reference", "red.png", *blend, *quick, *services.flags, *where, "--json"
    )
    images = [json.loads(one.stdout)["files"][0]["pixels_sha256"] for one in (by_file, at_once)]
    assert images[0] == images[1]


async def test_scores_as_a_table_and_as_json(zrelay: Zrelay, vision: str, pictures: tuple[str, str]) -> None:
    texts = ["--text", "a red circle", "--text", "a blue star"]
    ran = await zrelay("vision", "score", *pictures, *texts, "--vision", vision)
    assert ran.returncode == 0 and ran.stdout.count("a red circle") == 2 and "%" in ran.stdout, ran.stderr
    said = json.loads((await zrelay("vision", "score", *pictures, *texts, "--vision", vision, "--json")).stdout)
    assert said["texts"] == ["a red circle", "a blue star"]
    assert [one["image"] for one in said["images"]] == list(pictures)
    for one in said["images"]:
        assert all(0 < value < 1 for value in one["probabilities"]) and all(
            -1 <= value <= 1 for value in one["cosines"]
        )


async def test_what_cannot_work_is_refused_before_any_call(zrelay: Zrelay, empty_home: Path) -> None:
    nowhere = ["--vision", "127.0.0.1:1"]
    async with AsyncClient(vision="127.0.0.1:1") as client:
        with pytest.raises(TypeError, match="got one"):
            await client.encode_images("notes.txt", engine="siglip")
    ran = await zrelay("vision", "encode", "nothing.png", "-o", "nowhere/a.safetensors", *nowhere)
    assert ran.returncode == 5 and "this folder does not exist" in ran.stderr
    ran = await zrelay("vision", "encode", "a.png", "-o", "a.safetensors", "--engine", "siglip", "--layer", "-2")
    assert ran.returncode == 2 and "--layer is for --engine qwen3-vl" in ran.stderr


async def test_files_that_cannot_be_are_refused_by_name(zrelay: Zrelay, vision: str, empty_home: Path) -> None:
    Path("notes.txt").write_text("hello")
    Path("broken.png").write_bytes(RED[:60])
    for name, code, told in (
        ("notes.txt", 3, "notes.txt: expected an image (PNG, JPEG or WebP), got another file: convert it"),
        ("gone.png", 5, "gone.png: No such file"),
        ("broken.png", 3, "broken.png: expected a whole PNG file"),
    ):
        ran = await zrelay("vision", "score", name, "--text", "a", "--vision", vision)
        assert ran.returncode == code and told in ran.stderr, ran.stderr


async def test_a_file_over_the_limit_is_not_read_whole(vision: str, empty_home: Path) -> None:
    with Path("huge.png").open("wb") as file:
        file.write(RED)
        file.truncate(1 << 33)
    async with AsyncClient(vision=vision) as client:
        with pytest.raises(InvalidArgument, match=r"huge\.png: expected an image of at most \d+ bytes") as refused:
            await client.encode_images(["huge.png"], engine="siglip")
    assert refused.value.reason == "IMAGE_BYTES"


async def test_refusals_of_the_service_arrive(zrelay: Zrelay, vision: str, pictures: tuple[str, str]) -> None:
    encode = ["vision", "encode", "red.png", "-o", "a.safetensors", "--vision", vision]
    ran = await zrelay(*encode, "--layer", "-99")
    assert ran.returncode == 3 and "error: --layer: expected -4 to -1, got -99" in ran.stderr
    ran = await zrelay(*encode, "--engine", "siglip", "--target-area", "7")
    assert ran.returncode == 3 and "error: --target-area: expected 4096 to 16777216 pixels, got 7" in ran.stderr
    assert not Path("a.safetensors").exists()
    ran = await zrelay("vision", "score", "red.png", "--text", "word " * 500, "--vision", vision)
    assert ran.returncode == 3 and "error: --text (number 1): expected at most 64 tokens" in ran.stderr


async def test_more_images_than_one_call_takes(services: Services, empty_home: Path) -> None:
    """A service that takes two at a time gets three in two calls, and the answers keep their order."""
    siglip = VISION_CHECKPOINT / "siglip"
    few = services.start(VisionServicer(VisionConfig(siglip=siglip, device="cpu", threads=1, max_images=2)))
    images = [solid_png((value, 0, 0)) for value in (10, 20, 30)]
    async with AsyncClient(vision=few) as client:
        found = await client.encode_images(images, engine="siglip")
        scores = await client.score_images(images, ["a red circle"])
    assert [one.image_sha256 for one in found] == [hashlib.sha256(image).hexdigest() for image in images]
    assert len(scores) == 3


async def test_a_prompt_is_conditioned_by_a_path_bytes_states_and_a_file(
    services: Services, vision: str, pictures: tuple[str, str]
) -> None:
    async with AsyncClient(encoder=services.encoder, vision=vision) as client:
        embeds = await client.encode("a red circle", negative_prompt="")
        (states,) = await client.encode_images(["red.png"], engine="qwen3_vl")
        states.save("red.safetensors")
        sources: list[str | bytes | ImageEmbeds] = ["red.png", RED, states, "red.safetensors"]
        made = [await client.condition_prompt(embeds, source, alpha=0.4) for source in sources]
    assert len({rows(one.embeds) for one in made}) == 1 and rows(made[0].embeds) != rows(embeds)
    assert [one.image_sha256 for one in made[:2]] == [hashlib.sha256(RED).hexdigest()] * 2
    for one in made:
        assert "conditioning" in one.embeds.fingerprint.modifications
        assert one.embeds.prompt == "a red circle" and one.embeds.negative_report == embeds.negative_report
        assert one.report.before.tokens == one.report.after.tokens == embeds.report.token_count
        assert one.report.states.tokens == states.shape[0]
    made[0].embeds.save("conditioned.safetensors")
    assert rows(Embeds.load("conditioned.safetensors")) == rows(made[0].embeds)


async def test_alpha_0_gives_the_prompt_back(services: Services, vision: str) -> None:
    async with AsyncClient(encoder=services.encoder, vision=vision) as client:
        embeds = await client.encode("a red circle")
        same = await client.condition_prompt(embeds, RED, alpha=0.0)
        with pytest.raises(InvalidArgument, match="alpha"):
            await client.condition_prompt(embeds, RED, alpha=1.5)
        with pytest.raises(InvalidArgument, match="blend: expected one of interpolate"):
            await client.condition_prompt(embeds, RED, blend="stir")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="did you mean 'alpha'"):
            await client.condition_prompt(embeds, RED, alfa=0.5)  # type: ignore[call-arg]
    assert rows(same.embeds) == rows(embeds)


async def test_states_cannot_be_read_anew_nor_grids_blended(services: Services, vision: str) -> None:
    async with AsyncClient(encoder=services.encoder, vision=vision) as client:
        embeds = await client.encode("a red circle")
        (grid,) = await client.encode_images([RED], engine="siglip")
        with pytest.raises(InvalidArgument, match="expected states of a Qwen3-VL, got a siglip grid") as refused:
            await client.condition_prompt(embeds, grid)
        assert refused.value.reason == "STATES_ENGINE"
        (states,) = await client.encode_images([RED], engine="qwen3_vl")
        with pytest.raises(InvalidArgument, match="text: expected none for an image") as refused:
            await client.condition_prompt(embeds, states, text="a star")
        assert refused.value.reason == "STATES_ALREADY_READ"


def test_the_sync_client_has_the_same(services: Services, vision: str) -> None:
    with Client(encoder=services.encoder, vision=vision) as client:
        (states,) = client.encode_images([RED], engine="qwen3_vl")
        assert client.condition_prompt(client.encode("a red circle"), states).report.states.tokens == states.shape[0]
        assert len(client.score_images([RED], ["a", "b"])[0].cosines) == 2


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"vision_embeds.v1", b"vision_embeds.v9", "VISION_FILE_INVALID"),
        (b'"hidden_states.0"', b'"hidden_states.7"', "VISION_FILE_INVALID"),
        (b'\\"family\\": \\"qwen3_vl\\"', b'\\"family\\": \\"qwen9_vl\\"', "FINGERPRINT_INVALID"),
    ],
)
async def test_a_file_that_contradicts_itself_is_refused(
    vision: str, pictures: tuple[str, str], old: bytes, new: bytes, reason: str
) -> None:
    raw = await saved(vision)
    assert old in raw
    Path("a.safetensors").write_bytes(raw.replace(old, new, 1))
    with pytest.raises(InvalidArgument) as refused:
        ImageEmbeds.load("a.safetensors")
    assert refused.value.reason == reason


async def test_damaged_bytes_are_noticed(vision: str, pictures: tuple[str, str]) -> None:
    raw = bytearray(await saved(vision))
    raw[-1] ^= 1
    Path("a.safetensors").write_bytes(raw)
    with pytest.raises(PayloadCorrupt):
        ImageEmbeds.load("a.safetensors")
    Path("a.safetensors").write_bytes(raw[:-1])
    with pytest.raises(InvalidArgument, match=r"a\.safetensors: expected a safetensors file .* one that is truncated"):
        ImageEmbeds.load("a.safetensors")


async def test_a_file_of_two_is_not_one(vision: str, pictures: tuple[str, str]) -> None:
    async with AsyncClient(vision=vision) as client:
        vision_embeds.save(await client.encode_images(pictures, engine="siglip"), "two.safetensors")
    with pytest.raises(InvalidArgument, match="expected one image, got 2"):
        ImageEmbeds.load("two.safetensors")


def test_the_stack_gives_the_vision_service_what_stands_beside_its_model(tmp_path: Path) -> None:
    assert vision_model(demo_checkpoint()) == VISION_CHECKPOINT
    assert vision_model(tmp_path) is vision_model(tmp_path / "nowhere") is None
    (tmp_path / "siglip").mkdir()
    (tmp_path / "siglip/config.json").write_text("{}")
    assert vision_model(tmp_path) == tmp_path


async def saved(vision: str) -> bytes:
    async with AsyncClient(vision=vision) as client:
        (states,) = await client.encode_images(["red.png"], engine="qwen3_vl")
    states.save("a.safetensors")
    return Path("a.safetensors").read_bytes()


def rows(embeds: Embeds) -> bytes:
    """The bytes of a prompt's embeddings."""
    (segment,) = embeds.parcel.message.prompt.prompt_embeds.segments
    return bytes(embeds.parcel.bytes_of(segment.prompt_embeds))
