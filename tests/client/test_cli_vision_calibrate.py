"""`zrelay calibrate` and `zrelay analyze` against the demo's encoder: statistics held against torch's own."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.images import solid_png
from zrelay_client import AsyncClient
from zrelay_client.calibration import batches, read_corpus
from zrelay_demo import VISION_CHECKPOINT
from zrelay_shared import embeds_file, reference_file
from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.tensors import check
from zrelay_shared.torch_tensors import as_torch
from zrelay_vision.api.servicer import VisionServicer
from zrelay_vision.conditioning.reference import open_reference_sets
from zrelay_vision.config import VisionConfig

from .conftest import Services, Zrelay

GREEN = solid_png((30, 160, 60), 96, 96)
PROMPTS = ("a red circle", "two blue stars on a white background", "é", "a moon at the top left")


@pytest.fixture
def corpus(empty_home: Path) -> str:
    lines = ["# words", "", *PROMPTS[:2], "   ", *PROMPTS[2:], "# end"]
    Path("words.txt").write_text("\n".join(lines), encoding="utf-8")
    return "words.txt"


async def states(encoder: str, layer: int) -> list[torch.Tensor]:
    """The prompts' embeddings in float32, as torch reads them."""
    async with AsyncClient(encoder=encoder) as client:
        found = await client.encode_batch(PROMPTS, hidden_layer=layer, dtype="f32")
    tensors = []
    for embeds in found:
        (segment,) = embeds.parcel.message.prompt.prompt_embeds.segments
        view = check(segment.prompt_embeds, embeds.parcel.bytes_of(segment.prompt_embeds), field="a")
        tensors.append(as_torch(view))
    return tensors


@pytest.mark.parametrize("layer", [-2, -3])
async def test_statistics_are_those_of_the_encoders_own_states(
    zrelay: Zrelay, services: Services, corpus: str, layer: int
) -> None:
    encoder = services.encoder
    ran = await zrelay(
        "calibrate", "--corpus", corpus, "--layer", str(layer), "-o", "s.safetensors", "--encoder", encoder, "--json"
    )
    assert ran.returncode == 0, ran.stderr
    said, found = json.loads(ran.stdout), reference_file.read(Path("s.safetensors"))
    every = await states(encoder, layer)
    rest, whole = torch.cat([rows[1:] for rows in every]), torch.cat(every)
    for mean, std, rows in ((found.mean, found.std, rest), (found.mean_with_first, found.std_with_first, whole)):
        assert torch.allclose(torch.tensor(mean), rows.mean(0), rtol=1e-4, atol=1e-3)
        assert torch.allclose(torch.tensor(std), rows.std(0, correction=0), rtol=1e-4, atol=1e-3)
    assert torch.allclose(torch.tensor(found.token_rms), rest.square().mean(1).sqrt().sort().values, rtol=1e-4)
    assert (said["prompts"], said["tokens"], said["width"], said["hidden_layer"]) == (4, len(rest), 128, layer)
    assert said["fingerprint"] == found.fingerprint.digest and found.corpus.startswith("words.txt sha256:")


async def test_the_bundled_corpus_calibrates_what_the_vision_service_then_uses(
    zrelay: Zrelay, services: Services, empty_home: Path
) -> None:
    """The whole way: calibrate to the default place, start the service on it, and normalise per dimension."""
    encoder = services.encoder
    ran = await zrelay("calibrate", "--encoder", encoder)
    assert ran.returncode == 0 and "248 prompts" in ran.stderr, ran.stderr
    folder = empty_home / "state" / "references"
    assert Path(ran.stdout.strip()).parent == folder
    async with AsyncClient(encoder=encoder) as client:
        made_by = (await client.encoder_info()).fingerprint
    assert made_by is not None
    reference = open_reference_sets(folder).reference_for(made_by)
    assert reference is not None and reference.prompts == 248 and reference.tokens > 3000
    config = VisionConfig(
        qwen3_vl=VISION_CHECKPOINT / "qwen3_vl", device="cpu", threads=1, hidden_layer=-2, reference_stats=folder
    )
    vision = services.start(VisionServicer(config))
    async with AsyncClient(encoder=encoder, vision=vision) as client:
        embeds = await client.encode("a red circle")
        said = await client.condition_prompt(embeds, GREEN, normalization="per_dim", outlier_mask="clamp")
        engines = (await client.vision_info()).engines
    assert said.report.calibrated
    assert made_by.digest in next(engine.calibrations for engine in engines if engine.name == "qwen3_vl")


async def test_the_service_says_so_where_no_set_fits(services: Services, empty_home: Path) -> None:
    config = VisionConfig(qwen3_vl=VISION_CHECKPOINT / "qwen3_vl", device="cpu", threads=1, hidden_layer=-2)
    vision = services.start(VisionServicer(config))
    async with AsyncClient(encoder=services.encoder, vision=vision) as client:
        embeds = await client.encode("a red circle")
        with pytest.raises(FailedPrecondition, match="zrelay calibrate") as refused:
            await client.condition_prompt(embeds, GREEN, normalization="per_dim")
    assert refused.value.reason == "REFERENCE_STATISTICS_MISSING"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"one\n", "expected 2 to 20000 prompts, one a line, got 1"),
        (b"# nothing\n", "got 0"),
        (b"a\n\xff\xfe\n", "expected UTF-8"),
    ],
)
async def test_a_corpus_that_cannot_be_is_refused(
    zrelay: Zrelay, services: Services, empty_home: Path, content: bytes, told: str
) -> None:
    Path("bad.txt").write_bytes(content)
    ran = await zrelay("calibrate", "--corpus", "bad.txt", "--encoder", services.encoder)
    assert ran.returncode == 3 and "bad.txt" in ran.stderr and told in ran.stderr


async def test_a_layer_that_is_not_there_is_refused(zrelay: Zrelay, services: Services, corpus: str) -> None:
    encoder = services.encoder
    ran = await zrelay("calibrate", "--corpus", corpus, "--layer", "-9", "-o", "s.safetensors", "--encoder", encoder)
    assert ran.returncode == 3 and "expected -4 to -1, got -9" in ran.stderr and not Path("s.safetensors").exists()


def test_the_bundled_corpus_is_varied() -> None:
    corpus = read_corpus()
    assert len(corpus.prompts) == len(set(corpus.prompts)) > 200
    lengths = sorted(len(prompt) for prompt in corpus.prompts)
    assert lengths[0] < 10 and lengths[-1] > 500
    assert sum(not prompt.isascii() for prompt in corpus.prompts) > 15


def test_batches_stay_within_what_a_reply_carries() -> None:
    assert list(batches(["a"] * 5, 2, 10_000)) == [["a", "a"], ["a", "a"], ["a"]]
    assert list(batches(["a" * 900, "b" * 900, "c"], 9, 1000)) == [["a" * 900], ["b" * 900], ["c"]]
    assert list(batches(["a" * 5000], 9, 1000)) == [["a" * 5000]]


@pytest.fixture
async def files(zrelay: Zrelay, services: Services, corpus: str) -> None:
    """A set of two layers, and an encoded prompt."""
    encoder = ["--encoder", services.encoder]
    for layer, name in ((-2, "two.safetensors"), (-3, "three.safetensors")):
        assert (await zrelay("calibrate", "--corpus", corpus, f"--layer={layer}", "-o", name, *encoder)).returncode == 0
    assert (await zrelay("encode", "a red circle", "-o", "prompt.safetensors", *encoder)).returncode == 0


async def test_a_set_alone_is_held_against_its_own_median(zrelay: Zrelay, files: None) -> None:
    said = json.loads((await zrelay("analyze", "two.safetensors", "--threshold", "1.5", "--json")).stdout)
    std = torch.tensor(reference_file.read(Path("two.safetensors")).std)
    ratios = std / std.sort().values[len(std) // 2]
    worst = ratios.argsort(descending=True)[: int((ratios > 1.5).sum())]
    assert said["outlier_count"] == len(worst) > 0
    assert [one["dimension"] for one in said["outliers"]] == worst[:20].tolist()
    assert said["outliers"][0]["ratio"] == pytest.approx(float(ratios.max()), rel=1e-5)
    assert (said["file"]["kind"], said["reference"], said["correlations"]) == ("reference", None, None)


async def test_two_sets_are_correlated(zrelay: Zrelay, files: None) -> None:
    said = json.loads((await zrelay("analyze", "three.safetensors", "two.safetensors", "--json")).stdout)
    one, other = (reference_file.read(Path(name)) for name in ("three.safetensors", "two.safetensors"))
    for key, left, right in (("mean", one.mean, other.mean), ("std", one.std, other.std)):
        wanted = torch.corrcoef(torch.tensor([list(left), list(right)], dtype=torch.float64))[0, 1]
        assert said["correlations"][key] == pytest.approx(float(wanted), abs=1e-6)
    same = json.loads((await zrelay("analyze", "two.safetensors", "two.safetensors", "--json")).stdout)
    assert same["correlations"] == pytest.approx({"mean": 1.0, "std": 1.0, "log_std": 1.0})
    assert same["outlier_count"] == 0


async def test_embeddings_are_held_against_a_set(zrelay: Zrelay, files: None) -> None:
    ran = await zrelay("analyze", "prompt.safetensors", "two.safetensors", "--json", "--threshold", "0")
    said = json.loads(ran.stdout)
    spec = embeds_file.read(Path("prompt.safetensors"))
    (segment,) = spec.message.prompt.prompt_embeds.segments
    rows = as_torch(check(segment.prompt_embeds, spec.bytes_of(segment.prompt_embeds), field="a")).float()[1:]
    ratios = rows.std(0, correction=0) / torch.tensor(reference_file.read(Path("two.safetensors")).std)
    assert said["outliers"][0]["dimension"] == int(ratios.argmax())
    assert said["outliers"][0]["ratio"] == pytest.approx(float(ratios.max()), rel=1e-4)
    assert (said["file"]["kind"], said["file"]["tokens"]) == ("prompt_embeds", len(rows))
    whole = json.loads((await zrelay("analyze", "prompt.safetensors", "--with-first", "--json")).stdout)
    assert whole["file"]["tokens"] == len(rows) + 1


async def test_the_table_says_the_same(zrelay: Zrelay, files: None) -> None:
    ran = await zrelay("analyze", "prompt.safetensors", "two.safetensors", "--threshold", "0.1", "--top", "3")
    assert ran.returncode == 0, ran.stderr
    assert "correlation over dimensions" in ran.stdout and "and 125 more" in ran.stdout
    calm = await zrelay("analyze", "two.safetensors", "two.safetensors")
    assert "no dimension deviates more than 10 times the deviation in two.safetensors" in calm.stdout


async def test_files_that_cannot_be_analysed_are_refused(zrelay: Zrelay, files: None, empty_home: Path) -> None:
    Path("notes.txt").write_text("hello")
    ran = await zrelay("analyze", "notes.txt")
    assert ran.returncode == 3 and "notes.txt: expected a safetensors file of zrelay" in ran.stderr
    ran = await zrelay("analyze", "gone.safetensors")
    assert ran.returncode == 5
    weights = str(VISION_CHECKPOINT / "siglip/model.safetensors")
    ran = await zrelay("analyze", weights)
    assert ran.returncode == 3 and "expected a file of `zrelay calibrate`" in ran.stderr
