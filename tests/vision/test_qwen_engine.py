"""The Qwen3-VL engine: what it caches between calls, what it refuses, and its fingerprint."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.images import picture
from tests.helpers.refusals import refused
from tests.vision.helpers import load_qwen, loaded_qwen
from zrelay_shared.errors import Cancelled, CheckpointError, FeatureMissing
from zrelay_vision.config import VisionConfig
from zrelay_vision.qwen3_vl.engine import PreparedImage, Qwen3VLEngine
from zrelay_vision.qwen3_vl.folder import open_qwen3_vl
from zrelay_vision.qwen3_vl.states import ImageStates, StatesParameters

IMAGE = picture(50, 40)


def prepare(
    made: Qwen3VLEngine, parameters: StatesParameters, sha256: str = "a", area: int | None = None
) -> PreparedImage:
    return made.prepare(sha256, IMAGE.size, lambda: IMAGE, parameters, area)


def run(made: Qwen3VLEngine, reading: PreparedImage) -> ImageStates:
    return made.run(reading, lambda: False)


def test_states_of_an_image_are_held_and_serve_any_text(tiny: Path) -> None:
    made = load_qwen(tiny, cache_bytes=1 << 30)
    first = run(made, prepare(made, StatesParameters(-2, text="red")))

    def no_pixels() -> Any:
        pytest.fail("the image was decoded although its states are cached")

    held = made.prepare("a", IMAGE.size, no_pixels, StatesParameters(-2, text="something else"), None)
    again = run(made, held)
    image = slice(0, first.start + first.count)
    assert torch.equal(first.hidden_states[image], again.hidden_states[image])
    assert not torch.equal(first.hidden_states[-3:], again.hidden_states[-3:])
    same = run(made, made.prepare("a", IMAGE.size, no_pixels, StatesParameters(-2, text="red"), None))
    assert torch.equal(first.hidden_states, same.hidden_states)


@pytest.mark.parametrize(
    ("sha256", "parameters", "area"),
    [
        ("b", StatesParameters(-2), None),
        ("a", StatesParameters(-3), None),
        ("a", StatesParameters(-2, system_prompt="look"), None),
        ("a", StatesParameters(-2), 16 * 16),
    ],
)
def test_what_states_depend_on(tiny: Path, sha256: str, parameters: StatesParameters, area: int | None) -> None:
    made = load_qwen(tiny, cache_bytes=1 << 30)
    run(made, prepare(made, StatesParameters(-2)))
    assert prepare(made, StatesParameters(-2)).patches is None
    assert prepare(made, parameters, sha256, area).patches is not None


def test_what_is_held_is_bounded(tiny: Path) -> None:
    made = load_qwen(tiny, cache_bytes=40_000)
    for at in range(9):
        run(made, prepare(made, StatesParameters(-2), f"{at}"))
        assert made.cached_bytes <= 40_000
    assert prepare(made, StatesParameters(-2), "8").patches is None
    assert prepare(made, StatesParameters(-2), "0").patches is not None


def test_warming_up_leaves_nothing_behind(tiny: Path) -> None:
    made = load_qwen(tiny, cache_bytes=1 << 30)
    made.warm_up()
    assert made.cached_bytes == 0


def test_a_caller_that_went_away_stops_it_between_two_blocks(tiny: Path) -> None:
    made, checks = loaded_qwen(tiny), list[int]()

    def gone() -> bool:
        checks.append(1)
        return len(checks) > 2

    with pytest.raises(Cancelled):
        made.run(prepare(made, StatesParameters(-1)), gone)
    assert len(checks) == 3


def test_only_the_blocks_of_the_layer_are_loaded(tiny: Path) -> None:
    made = loaded_qwen(tiny, -5)
    names = {name for name, _ in made.model.named_parameters()}
    assert {name.split(".")[2] for name in names if name.startswith("language_model.layers")} == {"0", "1", "2"}
    assert not [name for name in names if "lm_head" in name or name == "language_model.norm.weight"]
    error = refused(
        lambda: prepare(made, StatesParameters(-2)),
        FeatureMissing,
        field="states_options.hidden_layer",
        match="--hidden-layer -2",
    )
    assert error.metadata["feature"] == "vision.layer"
    run(made, prepare(made, StatesParameters(-6)))


def test_the_layer_is_the_flags_or_the_folders_or_minus_six(tiny: Path, tmp_path: Path) -> None:
    assert loaded_qwen(tiny, None).hidden_layer == -6
    own = Path(shutil.copytree(tiny, tmp_path / "own"))
    (own / "zrelay.json").write_text(json.dumps({"name": "mine", "hidden_layer": -3}))
    made = load_qwen(own, hidden_layer=None)
    assert made.fingerprint is not None
    assert (made.fingerprint.hidden_layer, made.fingerprint.model_id) == (-3, "mine")
    assert load_qwen(own, hidden_layer=-2).hidden_layer == -2
    with pytest.raises(CheckpointError, match=r"--hidden-layer: expected -7 to -1, got -8"):
        load_qwen(tiny, hidden_layer=-8)


@pytest.mark.parametrize(
    ("parameters", "area", "reason", "field"),
    [
        (StatesParameters(-8), None, "HIDDEN_LAYER_INVALID", "states_options.hidden_layer"),
        (StatesParameters(0), None, "HIDDEN_LAYER_INVALID", "states_options.hidden_layer"),
        (StatesParameters(text="<|image_pad|>"), None, "TEXT_HAS_IMAGE", "states_options"),
        (StatesParameters(system_prompt="<|image_pad|>"), None, "TEXT_HAS_IMAGE", "states_options"),
        (StatesParameters(text="<|video_pad|>"), None, "TEXT_HAS_IMAGE", "states_options"),
        (StatesParameters(), 1, "TARGET_AREA_INVALID", "target_area"),
        (StatesParameters(), 1 << 40, "TARGET_AREA_INVALID", "target_area"),
    ],
)
def test_refusals(tiny: Path, parameters: StatesParameters, area: int | None, reason: str, field: str) -> None:
    refused(lambda: prepare(loaded_qwen(tiny), parameters, area=area), reason=reason, field=field)


def test_image_with_extreme_aspect_is_refused(tiny: Path) -> None:
    long = picture(402, 2)
    engine, field = loaded_qwen(tiny), "images[3].data"
    refused(
        lambda: engine.prepare("a", long.size, lambda: long, StatesParameters(), None, field=field),
        reason="IMAGE_ASPECT",
        field=field,
        match="402 x 2",
    )


@pytest.mark.parametrize("where", ["system_prompt", "text"])
def test_other_marks_in_a_text_are_text(tiny: Path, where: str) -> None:
    made = loaded_qwen(tiny)

    def rows(words: str) -> dict[str, int]:
        options: dict[str, Any] = {where: words}
        states = run(made, prepare(made, StatesParameters(-2, **options)))
        after = len(states.hidden_states) - states.start - states.count
        return {"system_prompt": states.start, "image": states.count, "text": after}

    plain, marked = rows("a  b "), rows("a <|vision_start|> b <|im_end|>")
    assert marked.pop(where) > plain.pop(where)
    assert marked == plain


def test_a_large_image_is_scaled_down_to_the_bound(tiny: Path) -> None:
    large = picture(96, 96)
    assert loaded_qwen(tiny).prepare("a", large.size, lambda: large, StatesParameters(), None).grid == (12, 12)
    bound = load_qwen(tiny, max_area=64 * 64)
    assert bound.prepare("a", large.size, lambda: large, StatesParameters(), None).grid == (8, 8)
    assert bound.fingerprint is not None and loaded_qwen(tiny).fingerprint is not None
    assert bound.fingerprint.processor_digest != loaded_qwen(tiny).fingerprint.processor_digest  # type: ignore[union-attr]


def test_the_fingerprint(tiny: Path, tiny_thinking: Path) -> None:
    made, other = loaded_qwen(tiny, -2).fingerprint, loaded_qwen(tiny_thinking, -2).fingerprint
    assert made is not None and other is not None
    assert (made.engine, made.family, made.width, made.hidden_layer) == ("qwen3_vl", "qwen3_vl", 32, -2)
    assert (made.compute_dtype, made.backend, made.model_id) == ("float32", "torch-cpu", "instruct")
    assert made.weights_digest != other.weights_digest
    assert made.processor_digest != other.processor_digest  # the chat template of the one that thinks is another
    assert made.digest != other.digest
    assert loaded_qwen(tiny, -2).fingerprint == made


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
            (folder / "merges.txt").unlink()
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
        case "no number in the vision tower" | "no number in the language model":
            tensors = load_file(folder / "model.safetensors")
            part = "model.visual." if "vision" in what else "model.language_model.layers.0."
            name = next(name for name in sorted(tensors) if name.startswith(part))
            tensors[name].view(-1)[-1] = torch.nan
            save_file(tensors, folder / "model.safetensors")
        case "a layer that is none":
            (folder / "zrelay.json").write_text('{"hidden_layer": 2}')
    return folder


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("patch_size", 16, "patch_size: expected 8, as config.json says (patch_size), got 16"),
        ("patch_size", None, "patch_size: expected 8, as config.json says (patch_size), got 14"),
        ("merge_size", 1, "merge_size: expected 2, as config.json says (spatial_merge_size), got 1"),
        ("temporal_patch_size", 1, "temporal_patch_size: expected 2, as config.json says (temporal_patch_size), got 1"),
        ("do_resize", False, "do_resize: expected true"),
        (
            "image_mean",
            [0.5],
            "image_mean: expected a list of three finite numbers, for red, green and blue, got [0.5]",
        ),
        ("image_std", ["a", 1, 1], "image_std: expected"),
        ("size", {"shortest_edge": "a", "longest_edge": 9216}, "size: expected whole numbers of pixels"),
        ("size", 96, "size"),
    ],
)
def test_settings_of_the_image_processor_that_do_not_fit_are_refused(
    tiny: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "broken"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {key: value}))
    error = refused(lambda: load_qwen(folder), CheckpointError)
    assert error.message.startswith("broken/preprocessor_config.json: ") and message in error.message


@pytest.mark.parametrize(
    "name", ["language_model.layers.6.foo", "language_model.layers.9.foo", "visual.blocks.9.foo", "foo"]
)
def test_a_tensor_that_the_whole_model_does_not_have_is_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "more"))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {f"model.{name}": torch.zeros(3)}, folder / "model.safetensors")
    error = refused(lambda: load_qwen(folder, hidden_layer=-2), CheckpointError)
    assert f"the weights hold model.{name}, which a model of this config.json does not have" in error.message


def test_a_rotary_table_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "instruct"))
    tensors = load_file(folder / "model.safetensors")
    for part in ("language_model.rotary_emb", "visual.rotary_pos_emb"):
        tensors[f"model.{part}.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")
    assert load_qwen(folder).fingerprint == loaded_qwen(tiny).fingerprint


def test_a_token_without_a_row_of_the_embedding_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "more"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    rows = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    settings["additional_special_tokens"] = ["<extra>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    message = f"token '<extra>' has id {rows}, but the embedding has {rows} rows"
    assert message in refused(lambda: load_qwen(folder), CheckpointError).message


@pytest.mark.parametrize(
    ("what", "message"),
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
        ("quantised weights", "holds integer weights without scales"),
        ("no number in the vision tower", "holds NaN or infinity"),
        ("no number in the language model", "holds NaN or infinity"),
        ("a template without images", "its chat template cannot show an image"),
        ("a template that fails", "its chat template cannot show an image"),
        ("a layer that is none", "hidden_layer 2; it must be -1 or less"),
    ],
)
def test_folders_that_lack_something(tiny: Path, tmp_path: Path, what: str, message: str) -> None:
    folder = broken(tiny, tmp_path / "broken", what)
    assert message in refused(lambda: load_qwen(folder), CheckpointError).message


def test_every_file_may_begin_with_a_byte_order_mark(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "marked"))
    for path in [*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.txt")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    plain, marked = loaded_qwen(tiny).fingerprint, load_qwen(folder).fingerprint
    assert plain is not None and marked == dataclasses.replace(plain, model_id=folder.name)


def test_a_template_among_named_ones(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "named"))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": named}))
    assert open_qwen3_vl(folder).chat_template == template


@pytest.mark.parametrize("where", ["chat_template.json", "tokenizer_config.json"])
def test_a_template_where_older_checkpoints_have_it(tiny: Path, tmp_path: Path, where: str) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "older"))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / where).read_text()) if (folder / where).is_file() else {}
    (folder / where).write_text(json.dumps({**settings, "chat_template": template}))
    assert open_qwen3_vl(folder).chat_template == template


@pytest.mark.parametrize(
    "changed",
    [{"device": "tpu"}, {"dtype": "int8"}, {"threads": 0}, {"hidden_layer": 0}, {"max_images": 0},
     {"state_cache_bytes": -1}],
)  # fmt: skip
def test_settings_that_cannot_be(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changed))}: expected"):
        VisionConfig(**changed)
