"""SigLIP2 grids: those of ZImageOmniPipeline and of transformers, with the same weights, bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageOmniPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Siglip2VisionModel

from tests.vision.helpers import CPU, load_siglip, loaded_siglip
from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT
from zrelay_demo.vision_folders import write_siglip
from zrelay_demo.vision_models import VisionWidths
from zrelay_shared.errors import Cancelled, CheckpointError, InvalidArgument
from zrelay_vision.images.store import DecodedImage
from zrelay_vision.siglip.engine import SiglipEngine
from zrelay_vision.siglip.folder import open_siglip


@pytest.fixture(scope="module")
def pipeline(demo_models: Path) -> Any:
    made = ZImageOmniPipeline.from_pretrained(demo_models / "omni", dtype=torch.float32)
    made.vae.to(torch.bfloat16)  # the pipeline encodes references in bfloat16 whatever the rest is
    made.set_progress_bar_config(disable=True)
    return made


def noise(width: int, height: int, seed: int = 0) -> DecodedImage:
    torch.manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    return DecodedImage(f"{width}x{height}-{seed}", width, height, Image.fromarray(pixels.numpy()))


def grids(engine: SiglipEngine, *pictures: DecodedImage, target_area: int | None = None) -> list[torch.Tensor]:
    return engine.encode(pictures, target_area=target_area, cancelled=lambda: False)


@pytest.mark.parametrize("size", [(128, 128), (200, 90), (64, 300), (17, 5), (1, 3), (3, 200)])
def test_naflex_grids_are_the_omni_pipelines(demo_models: Path, pipeline: Any, size: tuple[int, int]) -> None:
    picture = noise(*size)
    theirs = pipeline.prepare_siglip_embeds([picture.image], 1, CPU, torch.float32)[0][0]
    for path in (
        demo_models / "siglip",
        demo_models / "omni",
        demo_models / "omni/siglip",
    ):  # a checkpoint, a pipeline, its tower
        (ours,) = grids(loaded_siglip(path), picture)
        assert ours.shape == theirs.shape and ours.shape[0] * ours.shape[1] <= 64
        assert torch.equal(ours, theirs)


def test_a_large_reference_is_resized_as_the_pipeline_resizes_it(demo_models: Path, pipeline: Any) -> None:
    large, seen = noise(1400, 1000), []
    prepare = pipeline.prepare_siglip_embeds

    def watch(images: list[Image.Image], *args: object, **kwargs: object) -> object:
        seen.extend(images)
        return prepare(images, *args, **kwargs)

    pipeline.prepare_siglip_embeds = watch
    try:
        options = {"num_inference_steps": 1, "guidance_scale": 0.0, "max_sequence_length": 32, "output_type": "latent"}
        pipeline(prompt="a", image=[large.image], height=96, width=128, **options)
    finally:
        del pipeline.prepare_siglip_embeds
    (theirs,) = prepare(seen, 1, CPU, torch.float32)[0]
    engine = loaded_siglip(demo_models / "siglip")
    (ours,) = grids(engine, large, target_area=96 * 128)
    assert torch.equal(ours, theirs)
    (plain,) = grids(engine, large)
    assert not torch.equal(plain, ours), "without a target area the picture is read as it is"
    small = noise(300, 200)
    assert torch.equal(grids(engine, small)[0], grids(engine, small, target_area=96 * 128)[0]), "only above a megapixel"


@pytest.mark.parametrize("size", [(96, 96), (200, 90), (1, 3)])
def test_fixed_grids_are_transformers(demo_models: Path, size: tuple[int, int]) -> None:
    engine, picture = loaded_siglip(demo_models / "siglip_fixed"), noise(*size)
    model = AutoModel.from_pretrained(demo_models / "siglip_fixed", dtype=torch.float32).eval()
    resized = picture.image.resize((96, 96), Image.Resampling.BILINEAR)
    pixels = torch.tensor(list(resized.tobytes()), dtype=torch.float32).view(96, 96, 3).permute(2, 0, 1)[None]
    with torch.inference_mode():
        theirs = model.vision_model(pixel_values=(pixels / 255 - 0.5) / 0.5).last_hidden_state[0]
    (ours,) = grids(engine, picture)
    assert ours.shape == (6, 6, 96)
    assert torch.allclose(ours.reshape(36, 96), theirs, atol=1e-5)


def test_bfloat16_is_transformers_in_bfloat16(demo_models: Path) -> None:
    picture, engine = noise(100, 120), load_siglip(demo_models / "siglip", "bfloat16")
    model = Siglip2VisionModel.from_pretrained(demo_models / "omni/siglip", dtype=torch.bfloat16).eval()
    inputs = engine.components.preprocessor.processor(images=[picture.image], return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**inputs).last_hidden_state[0]
    (ours,) = grids(engine, picture)
    assert ours.dtype == torch.bfloat16
    rows, columns = inputs.spatial_shapes[0].tolist()
    assert torch.equal(ours.reshape(-1, 96), theirs[: rows * columns])


def test_sides_that_patches_do_not_fill_are_cut(tmp_path: Path) -> None:
    """As so400m-patch14-384 has it: 384 / 14 is 27.4, and the grid 27 x 27."""
    write_siglip(tmp_path / "odd", VisionWidths(patch=14, fixed_side=104), fixed=True)
    engine, picture = load_siglip(tmp_path / "odd"), noise(50, 60)
    (ours,) = grids(engine, picture)
    assert ours.shape == (7, 7, 96)
    model = AutoModel.from_pretrained(tmp_path / "odd", dtype=torch.float32).eval()
    pixels = engine.components.preprocessor.processor(images=[picture.image], return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(ours.reshape(49, 96), model.vision_model(**pixels).last_hidden_state[0])


def test_rows_come_first(demo_models: Path) -> None:
    (wide,) = grids(loaded_siglip(demo_models / "siglip"), noise(300, 80))
    assert wide.shape[1] > 2 * wide.shape[0]


def test_only_the_vision_tower_is_held_for_grids(demo_models: Path) -> None:
    engine = load_siglip(demo_models / "siglip")
    grids(engine, noise(64, 64))
    assert len(engine.loaded_towers) == 1
    alone = load_siglip(demo_models / "omni")
    assert not alone.can_score and not hasattr(alone.loaded_towers[0], "head")


def test_a_picture_is_read_once(demo_models: Path) -> None:
    engine, picture = load_siglip(demo_models / "siglip"), noise(64, 64)
    passes = []
    engine.loaded_towers[0].register_forward_pre_hook(lambda module, args: passes.append(module))
    (first,) = grids(engine, picture)
    assert grids(engine, picture)[0] is first and len(passes) == 1
    grids(engine, noise(64, 64, seed=1))
    assert len(passes) == 2


def test_it_says_what_it_is(demo_models: Path, tmp_path: Path) -> None:
    naflex, fixed = loaded_siglip(demo_models / "siglip"), loaded_siglip(demo_models / "siglip_fixed")
    fingerprint = naflex.fingerprint
    assert fingerprint is not None and fixed.fingerprint is not None
    assert (fingerprint.engine, fingerprint.family, fingerprint.width, fingerprint.hidden_layer) == (
        "siglip",
        "siglip2",
        96,
        0,
    )
    assert (fingerprint.model_id, fingerprint.compute_dtype, fingerprint.backend) == (
        "zrelay-demo-siglip",
        "float32",
        "torch-cpu",
    )
    assert fingerprint.weights_digest != fixed.fingerprint.weights_digest
    assert fingerprint.processor_digest != fixed.fingerprint.processor_digest
    other = shutil.copytree(demo_models / "siglip", tmp_path / "other")
    config = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**config, "max_num_patches": 49, "unknown": 1}))
    smaller = load_siglip(other)
    assert smaller.fingerprint is not None
    assert smaller.fingerprint.weights_digest == fingerprint.weights_digest
    assert smaller.fingerprint.processor_digest != fingerprint.processor_digest
    own = load_siglip(VISION_CHECKPOINT / "siglip").fingerprint
    assert own is not None and own.digest == fingerprint.digest


def test_a_caller_who_goes_away_stops_it(demo_models: Path) -> None:
    engine, checks = load_siglip(demo_models / "siglip"), list[int]()

    def cancelled() -> bool:
        checks.append(1)
        return len(checks) > 2

    with pytest.raises(Cancelled):
        engine.encode([noise(32, 32, seed) for seed in range(9)], target_area=None, cancelled=cancelled)
    assert len(checks) == 3


@pytest.mark.parametrize("area", [0, 100, 1 << 40])
def test_an_area_that_cannot_be_is_refused(demo_models: Path, area: int) -> None:
    with pytest.raises(InvalidArgument, match=f"target_area: expected 4096 to 16777216 pixels, got {area}") as refused:
        grids(loaded_siglip(demo_models / "siglip"), noise(8, 8), target_area=area)
    assert (refused.value.reason, refused.value.field) == ("TARGET_AREA_INVALID", "target_area")


def test_an_area_that_loses_a_side_is_refused(demo_models: Path) -> None:
    thin = DecodedImage("thin", 1_100_000, 1, Image.new("RGB", (1_100_000, 1)))
    with pytest.raises(InvalidArgument, match="both sides of the 1100000 x 1 image"):
        grids(loaded_siglip(demo_models / "siglip"), thin, target_area=4096)


def test_another_folder_is_refused_by_name(demo_models: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_siglip(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json says model_type 'qwen3_vl', expected 'siglip'"):
        open_siglip(demo_models / "qwen3_vl")
    with pytest.raises(CheckpointError, match=r"config\.json is missing; give the folder of a SigLIP2"):
        open_siglip(CHECKPOINT)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_folder_that_lacks_a_file_is_refused(demo_models: Path, tmp_path: Path, lost: str) -> None:
    (shutil.copytree(demo_models / "siglip", tmp_path / "broken") / lost).unlink()
    with pytest.raises(CheckpointError, match=lost):
        open_siglip(tmp_path / "broken")


HUGE = 10**50
"""A number of a strict JSON file has at most 64 characters."""
KINDS: list[object] = [[], ["siglip"], {}, None, True, HUGE, 1e300, "a" * 10**6]
VISION_CONFIGS: list[object] = [[], "a", None, True, HUGE, 1e300]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *[("model_type", value, "says model_type") for value in KINDS],
        *[("vision_config", value, "has no vision_config") for value in VISION_CONFIGS],
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_config_with_a_value_of_another_type_is_refused(
    demo_models: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    broken = shutil.copytree(demo_models / "siglip", tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=message) as refused:
        open_siglip(broken)
    assert len(refused.value.message) < 500 + len(str(broken))


def test_pickled_weights_are_refused(demo_models: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(demo_models / "siglip", tmp_path / "broken")
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as refused:
        open_siglip(broken)
    assert refused.value.reason == "PICKLE_REFUSED"


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (
            "preprocessor_config.json",
            "patch_size",
            14,
            r"patch_size: expected 16, as config.json says \(patch_size\), got 14",
        ),
        ("preprocessor_config.json", "image_mean", 3, "image_mean: expected a list of three finite numbers"),
        ("preprocessor_config.json", "image_mean", [0.5], r"image_mean: expected .*, got \[0.5\]"),
        ("preprocessor_config.json", "image_std", [0.5, 0, 0.5], "image_std: expected .* above 0"),
        ("preprocessor_config.json", "do_resize", False, "do_resize: expected true, .* got false"),
        ("preprocessor_config.json", "do_normalize", "yes", "do_normalize: expected true or false"),
        ("preprocessor_config.json", "resample", 17, "resample: expected the number of a resampling filter"),
        ("preprocessor_config.json", "rescale_factor", 0, "rescale_factor: expected a finite number above 0"),
        ("preprocessor_config.json", "max_num_patches", 0, "max_num_patches: expected a whole number"),
        ("preprocessor_config.json", "patch_size", 8.5, "patch_size: expected 16"),
        ("config.json", "vision_config", {"num_channels": 1}, "vision_config.num_channels: expected 3"),
        ("config.json", "vision_config", {"hidden_size": 96, "num_attention_heads": 7}, "config.num_attention_heads"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    demo_models: Path, tmp_path: Path, file: str, key: str, value: object, message: str
) -> None:
    broken = shutil.copytree(demo_models / "siglip", tmp_path / "broken")
    settings = json.loads((broken / file).read_text())
    (broken / file).write_text(json.dumps({**settings, key: value}))
    with pytest.raises(CheckpointError, match=message):
        load_siglip(broken)


def test_a_token_without_a_row_of_the_embedding_is_refused(demo_models: Path, tmp_path: Path) -> None:
    """When the service starts, not when the first texts are scored."""
    broken = shutil.copytree(demo_models / "siglip", tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["text_config"]["vocab_size"] = 9
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"token '.*' has id 9 \(and \d+ more\), but the embedding has 9 rows"):
        load_siglip(broken)


@pytest.mark.parametrize(
    "name", ["vision_model.foo", "vision_model.head.foo", "text_model.foo", "vision_model.encoder.layers.9.foo", "foo"]
)
@pytest.mark.parametrize("model", ["siglip", "siglip_fixed"])
def test_a_tensor_that_the_model_does_not_have_is_refused(
    demo_models: Path, tmp_path: Path, model: str, name: str
) -> None:
    """Also one of the text tower, which is loaded when texts are scored."""
    folder = shutil.copytree(demo_models / model, tmp_path / "more")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"hold {name}, which a model of this config\.json does not have"):
        load_siglip(folder)


def test_position_ids_and_what_grids_do_not_need_are_skipped(demo_models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo_models / "siglip", tmp_path / "saved")
    tensors = load_file(folder / "model.safetensors")
    tables = {f"{part}_model.embeddings.position_ids": torch.arange(64)[None] for part in ("vision", "text")}
    save_file(tensors | tables, folder / "model.safetensors")
    found, plain = load_siglip(folder), loaded_siglip(demo_models / "siglip")
    assert found.fingerprint is not None and plain.fingerprint is not None
    assert found.fingerprint.weights_digest == plain.fingerprint.weights_digest
    found.text_tower()
    (folder / "tokenizer_config.json").unlink()
    without_text = load_siglip(folder)
    assert not without_text.can_score and not hasattr(without_text.loaded_towers[0], "head")


def test_a_processor_that_crops_is_refused(demo_models: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(demo_models / "siglip_fixed", tmp_path / "broken")
    settings = json.loads((broken / "preprocessor_config.json").read_text())
    side = settings["size"]["height"]
    for crop, accepted in ((side, True), (side // 2, False)):
        crops = {"do_center_crop": True, "crop_size": {"height": crop, "width": crop}}
        (broken / "preprocessor_config.json").write_text(json.dumps(settings | crops))
        if accepted:
            load_siglip(broken)
        else:
            with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: .*do_center_crop, do_pad: expected"):
                load_siglip(broken)


def test_weights_that_lack_a_tensor_are_refused(demo_models: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(demo_models / "siglip", tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lack post_layernorm\.weight"):
        load_siglip(broken)
