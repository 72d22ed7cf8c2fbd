"""The bundled checkpoint: whole, small, free of local paths and pickles, and able to paint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline
from transformers import AutoTokenizer

from zrelay_demo import CHECKPOINT
from zrelay_demo.checker import check_prompt
from zrelay_demo.evaluate import MAIN, EvalSettings, generate_images
from zrelay_demo.folder import Defaults, size_bytes
from zrelay_demo.scenes import RESOLUTIONS
from zrelay_demo.table import markdown, share

PROMPTS = [
    "a small red circle on a blue background",
    "a large green square on a white background",
    "a yellow star on a purple background",
    "a large pink heart at the top left on a black background",
    "a white triangle at the right on a red background",
    "two black diamonds on an orange background",
    "four orange circles on a green background",
    "a blue cross to the left of a white circle on a yellow background",
]
WORDS = "a small red circle on a blue background, drei Füchse 日本 <|vision_start|><|image_pad|><|vision_end|><think>"
FILES = sorted(path for path in CHECKPOINT.rglob("*") if path.is_file())


def _defaults() -> Defaults:
    return Defaults(**json.loads((CHECKPOINT / "zrelay.json").read_text(encoding="utf-8")))


def test_it_generates_what_the_prompt_says() -> None:
    pictures = generate_images(CHECKPOINT, PROMPTS, MAIN, EvalSettings())
    wrong = [
        prompt for prompt, picture in zip(PROMPTS, pictures, strict=True) if not check_prompt(picture, prompt).all_right
    ]
    assert len(wrong) <= 1, wrong


def test_every_part_loads_as_bfloat16() -> None:
    pipeline = ZImagePipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16)
    assert pipeline.vae.config.latent_channels == 16
    assert pipeline.scheduler.config.shift == 3.0
    assert {part.dtype for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder)} == {torch.bfloat16}


def test_defaults_stand_beside_it() -> None:
    assert _defaults() == Defaults()


def test_it_is_small() -> None:
    assert size_bytes(CHECKPOINT) <= 25_000_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CHECKPOINT)))
def test_no_file_holds_a_local_path_or_a_pickle(path: Path) -> None:
    assert path.suffix in {".json", ".safetensors", ".txt", ".md", ".jinja"}
    content = path.read_bytes()
    for word in (b"/work", b"/root", b"/home", b"/tmp", b"_name_or_path"):
        assert word not in content


def _ids(folder: Path) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(folder)(WORDS).input_ids
    return ids


def test_tokenizer_keeps_its_ids_through_save_and_reload(tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(CHECKPOINT / "tokenizer").save_pretrained(tmp_path)
    assert _ids(tmp_path) == _ids(CHECKPOINT / "tokenizer")


def test_tokenizer_keeps_its_ids_without_tokenizer_json(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / "tokenizer" / name, tmp_path)
    assert _ids(tmp_path) == _ids(CHECKPOINT / "tokenizer")


def test_the_chat_template_frames_a_prompt() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    messages = [{"role": "user", "content": "a red circle"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert text == "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n"


def test_the_card_says_what_was_measured() -> None:
    card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    rows = json.loads((CHECKPOINT / "eval.json").read_text(encoding="utf-8"))["rows"]
    model = next(row for row in rows if row["name"] == "model")
    assert markdown(rows) in card
    assert f"{share(model['all_right'])} of {model['prompts']} fresh prompts" in card
    assert "It knows shapes and nothing else" in card
    assert "license: apache-2.0" in card


def test_the_measured_accuracy_is_what_is_required() -> None:
    rows = {row["name"]: row for row in json.loads((CHECKPOINT / "eval.json").read_text(encoding="utf-8"))["rows"]}
    model = rows["model"]
    least = {"background": 0.99, "colour": 0.98, "shape": 0.94, "count": 0.97, "place": 0.98, "all_right": 0.88}
    assert model["prompts"] >= 1000 and {name: model[name] for name in least if model[name] < least[name]} == {}
    assert rows["checker's ceiling: the renderer itself"]["all_right"] >= 0.985
    assert rows["VAE's ceiling: renders, encoded and decoded"]["all_right"] > 0.915
    assert rows["model: free wordings"]["all_right"] >= 0.82
    for width, height in RESOLUTIONS[1:]:
        assert rows[f"model: {width} x {height}"]["all_right"] >= 0.78
    for guidance in (1.0, 2.0, 3.0):
        assert rows[f"model: guidance {guidance}"]["all_right"] >= model["all_right"] - 0.05
