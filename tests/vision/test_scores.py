"""Image-text scores against transformers' model, and against the formula of the paper by hand."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from tests.vision.helpers import load_siglip, loaded_siglip
from zrelay_shared.errors import FeatureMissing, InvalidArgument
from zrelay_vision.images.store import DecodedImage
from zrelay_vision.siglip.scores import score

TEXTS = ("a small red circle", "A BLUE STAR", "é 日本", "two green moons at the top left on a white background")


@pytest.fixture(scope="module")
def folder(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoints with a scale and a bias that tell pairs apart, as training would give them."""
    folder = tmp_path_factory.mktemp("vision") / "models"
    for name in ("siglip", "siglip_fixed"):
        shutil.copytree(demo_models / name, folder / name)
        tensors = load_file(folder / name / "model.safetensors")
        tensors["logit_scale"], tensors["logit_bias"] = torch.tensor([4.5]), torch.tensor([0.5])
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    return folder


def decoded_image(name: str, seed: int, size: tuple[int, int]) -> DecodedImage:
    """An image of random pixels, as the service decodes it."""
    torch.manual_seed(seed)
    pixels = torch.randint(0, 256, (*reversed(size), 3), dtype=torch.uint8)
    return DecodedImage(name, *size, Image.fromarray(pixels.numpy()))


PICTURES = (decoded_image("a", 0, (128, 128)), decoded_image("b", 1, (90, 40)), decoded_image("c", 2, (33, 300)))


@pytest.mark.parametrize("name", ["siglip", "siglip_fixed"])
def test_scores_are_transformers_model_outputs(folder: Path, name: str) -> None:
    ours = loaded_siglip(folder / name).score(PICTURES, TEXTS, cancelled=lambda: False)
    model = AutoModel.from_pretrained(folder / name, dtype=torch.float32).eval()
    tokenizer, processor = (
        AutoTokenizer.from_pretrained(folder / name),
        AutoImageProcessor.from_pretrained(folder / name),
    )
    words = tokenizer(list(TEXTS), padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    images = processor(images=[p.image for p in PICTURES], return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**words, **images)
    assert ours.probabilities.shape == ours.cosines.shape == (3, 4)
    assert torch.allclose(ours.probabilities, torch.sigmoid(theirs.logits_per_image), atol=1e-6)
    assert torch.allclose(ours.cosines, theirs.image_embeds @ theirs.text_embeds.T, atol=1e-6)
    assert ours.probabilities.std() > 1e-4, "a test that could not fail"


def test_case_does_not_count(folder: Path, tmp_path: Path) -> None:
    """SigLIP2 was trained on lower case; published folders of a fixed size name Gemma's tokenizer, which keeps case."""
    copy = shutil.copytree(folder / "siglip_fixed", tmp_path / "fixed")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    whole = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**whole, "normalizer": None}))
    engine = load_siglip(copy)
    tower = engine.text_tower()
    shouted, plain = "A BLUE Star", "a blue star"
    assert tower.tokenizer(shouted).input_ids != tower.tokenizer(plain).input_ids, "a test that could not fail"
    got = engine.score(PICTURES[:1], [shouted, plain], cancelled=lambda: False)
    assert torch.allclose(got.cosines[:, 0], got.cosines[:, 1], atol=1e-6)


def test_one_pair_is_transformers_to_the_last_bit(folder: Path) -> None:
    ours = loaded_siglip(folder / "siglip").score(PICTURES[:1], TEXTS[:1], cancelled=lambda: False)
    model = AutoModel.from_pretrained(folder / "siglip", dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(folder / "siglip")(TEXTS[:1], padding="max_length", return_tensors="pt")
    images = AutoImageProcessor.from_pretrained(folder / "siglip")(images=[PICTURES[0].image], return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(ours.probabilities, torch.sigmoid(model(**words, **images).logits_per_image))


def test_padding_is_read_and_counts(folder: Path) -> None:
    """SigLIP was trained on 64 tokens without a mask: a text that is not padded has other scores."""
    engine = loaded_siglip(folder / "siglip")
    padded = engine.score(PICTURES[:1], TEXTS[:1], cancelled=lambda: False)
    tower = engine.text_tower()
    assert tower.length == 64
    ids = tower.tokenizer(TEXTS[0]).input_ids
    with torch.inference_mode():
        bare = tower.model(input_ids=torch.tensor([ids])).pooler_output
        full = tower.model(input_ids=torch.tensor([ids + [0] * (64 - len(ids))])).pooler_output
    assert not torch.allclose(bare, full, atol=1e-4)
    with torch.inference_mode():
        inputs, _ = engine.components.preprocessor.inputs(PICTURES[0].image)
        features = engine.loaded_towers[0](**inputs).pooler_output
    again = score(features, full, tower.scale.logit_scale, tower.scale.logit_bias)
    assert torch.equal(again.probabilities, padded.probabilities)


def test_the_formula_by_hand() -> None:
    images, texts = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    scores = score(images, texts, torch.tensor([math.log(10.0)]), torch.tensor([-5.0]))
    assert torch.allclose(scores.cosines, torch.tensor([[0.6, -0.8]]))
    by_hand = [1 / (1 + math.exp(-(10 * 0.6 - 5))), 1 / (1 + math.exp(-(10 * -0.8 - 5)))]
    assert torch.allclose(scores.probabilities, torch.tensor([by_hand]))
    with pytest.raises(ValueError, match=r"features: expected \[n, C\] twice, got \[1, 2\] and \[1, 3\]"):
        score(images, torch.ones(1, 3), torch.zeros(1), torch.zeros(1))


def test_bfloat16_stays_near(folder: Path) -> None:
    exact = loaded_siglip(folder / "siglip").score(PICTURES, TEXTS, cancelled=lambda: False)
    rough = loaded_siglip(folder / "siglip", "bfloat16").score(PICTURES, TEXTS, cancelled=lambda: False)
    assert (exact.cosines - rough.cosines).abs().max() < 0.01
    assert rough.probabilities.dtype == torch.float32


def test_a_text_over_the_limit_is_refused_not_cut(folder: Path) -> None:
    engine = loaded_siglip(folder / "siglip")
    with pytest.raises(InvalidArgument, match=r"texts\[1\]: expected at most 64 tokens, got \d+") as refused:
        engine.score(PICTURES[:1], ["a", "a red circle " * 40], cancelled=lambda: False)
    assert (refused.value.reason, refused.value.field) == ("TEXT_TOO_LONG", "texts[1]")


def test_files_may_begin_with_a_byte_order_mark(folder: Path, tmp_path: Path) -> None:
    marked = Path(shutil.copytree(folder / "siglip", tmp_path / "marked"))
    for path in marked.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    wanted = loaded_siglip(folder / "siglip").score(PICTURES[:1], TEXTS[:1], cancelled=lambda: False)
    found = load_siglip(marked).score(PICTURES[:1], TEXTS[:1], cancelled=lambda: False)
    assert torch.equal(found.cosines, wanted.cosines)


@pytest.mark.parametrize("lost", ["tokenizer_config.json", "text_config", "logit_bias"])
def test_a_checkpoint_without_texts_gives_grids_and_refuses_scores(folder: Path, tmp_path: Path, lost: str) -> None:
    bare = shutil.copytree(folder / "siglip", tmp_path / "bare")
    if lost == "logit_bias":
        tensors = load_file(bare / "model.safetensors")
        del tensors[lost]
        save_file(tensors, bare / "model.safetensors", metadata={"format": "pt"})
    elif lost == "text_config":
        config = json.loads((bare / "config.json").read_text())
        del config[lost]
        (bare / "config.json").write_text(json.dumps(config))
    else:
        (bare / lost).unlink()
    engine = load_siglip(bare)
    assert not engine.can_score
    assert engine.encode(PICTURES[:1], target_area=None, cancelled=lambda: False)[0].shape == (8, 8, 96)
    with pytest.raises(FeatureMissing) as refused:
        engine.score(PICTURES[:1], ["a"], cancelled=lambda: False)
    assert refused.value.metadata == {"feature": "vision.score"}
