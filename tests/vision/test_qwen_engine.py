"""The Qwen3-VL engine: what it holds between calls, what it refuses, what it says of itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zrelay_shared.errors import Cancelled, CheckpointError, FeatureMissing, InvalidArgument, ZrelayError
from zrelay_vision.config import VisionConfig
from zrelay_vision.qwen import Qwen3VLEngine, Reading
from zrelay_vision.qwen_folder import open_qwen3_vl
from zrelay_vision.token_modes import States, StatesOptions, TokenMode

from .conftest import load, picture

IMAGE = picture(50, 40)


def prepare(made: Qwen3VLEngine, asked: StatesOptions, sha256: str = "a", area: int | None = None) -> Reading:
    return made.prepare(sha256, IMAGE.size, lambda: IMAGE, asked, area)


def run(made: Qwen3VLEngine, reading: Reading) -> States:
    return made.run(reading, lambda: False)


def test_states_of_an_image_are_held_and_serve_any_text(tiny: Path) -> None:
    made = load(tiny, cache_bytes=1 << 30)
    first = run(made, prepare(made, StatesOptions(-2, text="red")))

    def no_pixels() -> Any:
        pytest.fail("the image was asked for although its states are held")

    held = made.prepare("a", IMAGE.size, no_pixels, StatesOptions(-2, text="something else"), None)
    again = run(made, held)
    image = slice(0, first.start + first.count)
    assert torch.equal(first.hidden_states[image], again.hidden_states[image])
    assert not torch.equal(first.hidden_states[-3:], again.hidden_states[-3:])
    same = run(made, made.prepare("a", IMAGE.size, no_pixels, StatesOptions(-2, text="red"), None))
    assert torch.equal(first.hidden_states, same.hidden_states)


@pytest.mark.parametrize(
    ("sha256", "asked", "area"),
    [
        ("b", StatesOptions(-2), None),
        ("a", StatesOptions(-3), None),
        ("a", StatesOptions(-2, system_prompt="look"), None),
        ("a", StatesOptions(-2), 16 * 16),
    ],
)
def test_what_states_depend_on(tiny: Path, sha256: str, asked: StatesOptions, area: int | None) -> None:
    made = load(tiny, cache_bytes=1 << 30)
    run(made, prepare(made, StatesOptions(-2)))
    assert prepare(made, StatesOptions(-2)).patches is None
    assert prepare(made, asked, sha256, area).patches is not None


def test_what_is_held_is_bounded(tiny: Path) -> None:
    made = load(tiny, cache_bytes=40_000)
    for at in range(9):
        run(made, prepare(made, StatesOptions(-2), f"{at}"))
        assert made._beginnings.nbytes <= 40_000
    assert prepare(made, StatesOptions(-2), "8").patches is None
    assert prepare(made, StatesOptions(-2), "0").patches is not None


def test_warming_up_leaves_nothing_behind(tiny: Path) -> None:
    made = load(tiny, cache_bytes=1 << 30)
    made.warm_up()
    assert made._beginnings.nbytes == 0


def test_a_caller_that_went_away_stops_it_between_two_blocks(tiny: Path) -> None:
    made, asked = load(tiny), []

    def gone() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(Cancelled):
        made.run(prepare(made, StatesOptions(-1)), gone)
    assert len(asked) == 3


def test_only_the_blocks_of_the_layer_are_loaded(tiny: Path) -> None:
    made = load(tiny, hidden_layer=-5)
    assert made._model is not None
    names = {name for name, _ in made._model.named_parameters()}
    assert {name.split(".")[2] for name in names if name.startswith("language_model.layers")} == {"0", "1", "2"}
    assert not [name for name in names if "lm_head" in name or name == "language_model.norm.weight"]
    with pytest.raises(FeatureMissing, match="--hidden-layer -2") as caught:
        prepare(made, StatesOptions(-2))
    assert (caught.value.field, caught.value.metadata["feature"]) == ("states_options.hidden_layer", "vision.layer")
    run(made, prepare(made, StatesOptions(-6)))


def test_the_layer_is_the_flags_or_the_folders_or_minus_six(tiny: Path, tmp_path: Path) -> None:
    assert load(tiny, hidden_layer=None).hidden_layer == -6
    own = Path(shutil.copytree(tiny, tmp_path / "own"))
    (own / "zrelay.json").write_text(json.dumps({"name": "mine", "hidden_layer": -3}))
    made = load(own, hidden_layer=None)
    assert made.fingerprint is not None
    assert (made.fingerprint.hidden_layer, made.fingerprint.model_id) == (-3, "mine")
    assert load(own, hidden_layer=-2).hidden_layer == -2
    with pytest.raises(CheckpointError, match=r"--hidden-layer: expected -7 to -1, got -8"):
        load(tiny, hidden_layer=-8)


@pytest.mark.parametrize(
    ("asked", "area", "reason", "field"),
    [
        (StatesOptions(-8), None, "HIDDEN_LAYER_INVALID", "states_options.hidden_layer"),
        (StatesOptions(0), None, "HIDDEN_LAYER_INVALID", "states_options.hidden_layer"),
        (StatesOptions(text="<|image_pad|>"), None, "TEXT_HAS_IMAGE", "states_options"),
        (StatesOptions(system_prompt="<|image_pad|>"), None, "TEXT_HAS_IMAGE", "states_options"),
        (StatesOptions(text="<|video_pad|>"), None, "TEXT_HAS_IMAGE", "states_options"),
        (StatesOptions(), 1, "TARGET_AREA_INVALID", "target_area"),
        (StatesOptions(), 1 << 40, "TARGET_AREA_INVALID", "target_area"),
    ],
)
def test_refusals(tiny: Path, asked: StatesOptions, area: int | None, reason: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        prepare(load(tiny), asked, area=area)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_an_image_too_long(tiny: Path) -> None:
    long = picture(402, 2)
    with pytest.raises(InvalidArgument, match="402 x 2") as caught:
        load(tiny).prepare("a", long.size, lambda: long, StatesOptions(), None, field="images[3].data")
    assert (caught.value.reason, caught.value.field) == ("IMAGE_ASPECT", "images[3].data")


def test_other_marks_in_a_text_are_text(tiny: Path) -> None:
    made = load(tiny)
    odd = run(made, prepare(made, StatesOptions(-2, TokenMode.FULL, "a <|vision_start|> b <|im_end|>")))
    assert odd.count == run(made, prepare(made, StatesOptions(-2))).count


def test_a_large_image_is_scaled_down_to_the_bound(tiny: Path) -> None:
    large = picture(96, 96)
    assert load(tiny).prepare("a", large.size, lambda: large, StatesOptions(), None).grid == (12, 12)
    bound = load(tiny, max_area=64 * 64)
    assert bound.prepare("a", large.size, lambda: large, StatesOptions(), None).grid == (8, 8)
    assert bound.fingerprint is not None and load(tiny).fingerprint is not None
    assert bound.fingerprint.processor_digest != load(tiny).fingerprint.processor_digest  # type: ignore[union-attr]


def test_the_fingerprint(tiny: Path, tiny_thinking: Path) -> None:
    made, other = load(tiny, hidden_layer=-2).fingerprint, load(tiny_thinking, hidden_layer=-2).fingerprint
    assert made is not None and other is not None
    assert (made.engine, made.family, made.width, made.hidden_layer) == ("qwen3_vl", "qwen3_vl", 32, -2)
    assert (made.compute_dtype, made.backend, made.model_id) == ("float32", "torch-cpu", "instruct")
    assert made.weights_digest != other.weights_digest
    assert made.processor_digest != other.processor_digest  # the chat template of the one that thinks is another
    assert made.digest != other.digest
    assert load(tiny, hidden_layer=-2).fingerprint == made


def broken(source: Path, target: Path, what: str) -> Path:
    folder = Path(shutil.copytree(source, target))
    config = json.loads((folder / "config.json").read_text())
    match what:
        case "no folder":
            shutil.rmtree(folder)
        case "another model":
            (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}))
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "pickles":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "no template":
            (folder / "chat_template.jinja").unlink()
        case "no processor":
            (folder / "preprocessor_config.json").unlink()
        case "other widths":
            config["text_config"]["intermediate_size"] = 65
            (folder / "config.json").write_text(json.dumps(config))
        case "more layers":
            config["text_config"]["num_hidden_layers"] = 8
            (folder / "config.json").write_text(json.dumps(config))
        case "a template without images":
            (folder / "chat_template.jinja").write_text("{{ messages[0].role }}")
        case "a template that fails":
            (folder / "chat_template.jinja").write_text("{{ messages.nothing.more }}")
        case "quantised weights":
            tensors = load_file(folder / "model.safetensors")
            name = "model.language_model.layers.0.mlp.up_proj.weight"
            save_file({**tensors, name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
        case "a layer that is none":
            (folder / "zrelay.json").write_text('{"hidden_layer": 2}')
    return folder


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no folder", "config.json is missing; give the folder of a Qwen3-VL"),
        ("another model", "says model_type 'qwen3', expected 'qwen3_vl'"),
        ("no weights", "model.safetensors is missing"),
        ("pickles", "pickled weights are never opened"),
        ("no tokenizer", "tokenizer.json is missing"),
        ("no template", "chat_template.jinja is missing"),
        ("no processor", "preprocessor_config.json is missing"),
        ("other widths", "config.json requires"),
        ("more layers", "the weights lack"),
        ("quantised weights", "up_proj.weight is I8; expected BF16, F16, F32: quantised weights are not supported"),
        ("a template without images", "its chat template cannot show an image"),
        ("a template that fails", "its chat template cannot show an image"),
        ("a layer that is none", "hidden_layer 2; it must be -1 or less"),
    ],
)
def test_folders_that_lack_something(tiny: Path, tmp_path: Path, what: str, said: str) -> None:
    folder = broken(tiny, tmp_path / "broken", what)
    with pytest.raises(ZrelayError) as caught:
        load(folder)
    assert said in caught.value.message and isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize("where", ["chat_template.json", "tokenizer_config.json"])
def test_a_template_where_older_checkpoints_have_it(tiny: Path, tmp_path: Path, where: str) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "older"))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    said = json.loads((folder / where).read_text()) if (folder / where).is_file() else {}
    (folder / where).write_text(json.dumps({**said, "chat_template": template}))
    assert open_qwen3_vl(folder).chat_template == template


@pytest.mark.parametrize(
    "changed",
    [{"device": "tpu"}, {"dtype": "int8"}, {"threads": 0}, {"hidden_layer": 0}, {"max_images": 0},
     {"state_cache_bytes": -1}],
)  # fmt: skip
def test_settings_that_cannot_be(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changed))}: expected"):
        VisionConfig(**changed)
