"""The vision service's tiny checkpoints: whole, small, the same every time, and loaded by the real libraries."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ZImageOmniPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration

from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT
from zrelay_demo.folder import size_bytes
from zrelay_demo.omni_folder import PARTS, write_omni_folder
from zrelay_demo.vision_folders import MAX_BYTES, write_checkpoints

RENEW = "the demo checkpoint is a new one: run `python -m zrelay_demo.vision_folders --bundle`"
FILES = sorted(path for path in VISION_CHECKPOINT.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision") / "models"
    write_checkpoints(folder, CHECKPOINT)
    return folder


def test_it_is_small() -> None:
    assert 0 < size_bytes(VISION_CHECKPOINT) <= MAX_BYTES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(VISION_CHECKPOINT)))
def test_no_file_holds_a_local_path_or_a_pickle(path: Path) -> None:
    assert path.suffix in {".json", ".safetensors", ".txt", ".md", ".jinja"}
    content = path.read_bytes()
    for word in (b"/work", b"/root", b"/home", b"/tmp", b"_name_or_path"):
        assert word not in content


def test_it_says_that_it_is_untrained(folder: Path) -> None:
    for card in (VISION_CHECKPOINT / "README.md", *folder.glob("*/README.md")):
        assert "**Untrained.**" in card.read_text(encoding="utf-8")
    assert len(list(folder.glob("*/README.md"))) == 4


def test_the_bundle_belongs_to_the_demo_checkpoint() -> None:
    ours = load_file(VISION_CHECKPOINT / "qwen3_vl/model.safetensors")
    theirs = load_file(CHECKPOINT / "text_encoder/model.safetensors")
    assert len(theirs) > 10
    for name, tensor in theirs.items():
        inside = "model.language_model." + name.removeprefix("model.")
        assert torch.equal(ours[inside], tensor), f"{name}: {RENEW}"
    width = json.loads((CHECKPOINT / "transformer/config.json").read_text(encoding="utf-8"))["dim"]
    assert load_file(VISION_CHECKPOINT / "omni" / PARTS)["siglip_pad_token"].shape == (1, width), RENEW


def test_it_is_made_the_same_every_time(folder: Path) -> None:
    for name in ("qwen3_vl/model.safetensors", "siglip/model.safetensors", "siglip/tokenizer.json"):
        assert (folder / name).read_bytes() == (VISION_CHECKPOINT / name).read_bytes(), f"{name}: {RENEW}"


def test_a_text_without_a_picture_has_the_text_encoders_states(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "qwen3_vl")
    encoder = Qwen3ForCausalLM.from_pretrained(CHECKPOINT / "text_encoder", dtype=torch.float32).eval()
    seeing = Qwen3VLForConditionalGeneration.from_pretrained(folder / "qwen3_vl", dtype=torch.float32).eval()
    ids = tokenizer("<|im_start|>user\na small red circle<|im_end|>\n", return_tensors="pt")
    with torch.inference_mode():
        theirs = encoder.model(**ids, output_hidden_states=True).hidden_states
        ours = seeing(**ids, output_hidden_states=True).hidden_states
    assert len(ours) == len(theirs)
    for mine, yours in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, yours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "grid"), [("siglip", [8, 8]), ("siglip_fixed", [6, 6])])
def test_both_kinds_of_siglip_load_and_score(folder: Path, name: str, grid: list[int]) -> None:
    model = AutoModel.from_pretrained(folder / name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    processor = AutoImageProcessor.from_pretrained(folder / name)
    texts = tokenizer(["a RED circle", "a blue star"], padding="max_length", return_tensors="pt")
    assert texts.input_ids.shape == (2, 64) and set(texts) == {"input_ids"}
    images = processor(images=[Image.new("RGB", (128, 128), (200, 30, 30))], return_tensors="pt")
    with torch.inference_mode():
        said = model(**texts, **images)
    assert said.logits_per_image.shape == (1, 2)
    assert said.vision_model_output.last_hidden_state.shape[1] == grid[0] * grid[1]


def test_the_omni_pipeline_paints(folder: Path) -> None:
    pipeline = ZImageOmniPipeline.from_pretrained(folder / "omni", dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    reference = Image.new("RGB", (128, 128), (200, 30, 30))
    said = pipeline(
        prompt="a red circle", image=[reference], num_inference_steps=2, guidance_scale=0.0, max_sequence_length=64
    ).images[0]
    assert said.size == (128, 128)
    assert pipeline.transformer.config.siglip_feat_dim == pipeline.siglip.config.hidden_size


def test_omni_out_of_the_bundle_is_the_same_and_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    write_omni_folder(tmp_path / "omni", CHECKPOINT, VISION_CHECKPOINT / "siglip", VISION_CHECKPOINT / "omni" / PARTS)
    shutil.rmtree(tmp_path / "omni" / ".cache", ignore_errors=True)
    ours = {path.relative_to(tmp_path / "omni"): path.read_bytes() for path in (tmp_path / "omni").rglob("*.*")}
    theirs = {path.relative_to(folder / "omni"): path.read_bytes() for path in (folder / "omni").rglob("*.*")}
    theirs.pop(Path("README.md"))
    assert ours == theirs
