"""Folders that are a checkpoint, and those that are not."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from safetensors.torch import load_file, save_file

from tests.helpers.refusals import refused
from zrelay_generator.model.identity import identify, identify_loaded
from zrelay_generator.model.loading import load_component, load_model
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.checkpoints import open_pipeline
from zrelay_shared.errors import CheckpointError, FailedPrecondition
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.torch_devices import is_out_of_memory
from zrelay_shared.weight_files import WeightFiles, weights_digest

CPU = torch.device("cpu")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


def refused_folder(folder: Path) -> CheckpointError:
    """Loads a folder, which must be refused, and returns the error."""
    return refused(lambda: load_model(folder, CPU, torch.float32), CheckpointError)


def edit(folder: Path, file: str, **changed: object) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changed))


def test_no_text_encoder_is_needed_nor_opened(tiny: Path, tmp_path: Path) -> None:
    assert not (tiny / "text_encoder").exists()
    model = load_model(tiny, CPU, torch.float32)
    assert (model.limits.text_limit, model.limits.embeds_width, model.limits.max_side) == (224, 48, 1024)
    assert (model.defaults.width, model.defaults.shift) == (1024, 3.0)
    encoder = identify(tiny, "tiny", tmp_path).encoder
    assert (encoder.family, encoder.width, encoder.tokenizer_digest) == ("qwen3", 48, "")


@pytest.mark.parametrize(
    "file", [WEIGHTS, "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
def test_a_missing_file_is_named(file: str, copy: Path) -> None:
    (copy / file).unlink()
    assert refused_folder(copy).metadata["file"] == file


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "transformer" / "diffusion_pytorch_model.bin")
    assert refused_folder(copy).reason == "PICKLE_REFUSED"


def test_truncated_weights(copy: Path) -> None:
    data = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(data[: len(data) // 2])
    assert "diffusion_pytorch_model.safetensors" in refused_folder(copy).message


def test_a_missing_tensor_is_not_made_up(copy: Path) -> None:
    weights = load_file(copy / WEIGHTS)
    del weights["layers.1.attention.to_k.weight"]
    save_file(weights, copy / WEIGHTS, {"format": "pt"})
    message = refused_folder(copy).message
    assert message.startswith("transformer: the weights lack layers.1.attention.to_k.weight, which config.json")


def test_weights_of_another_size(copy: Path) -> None:
    edit(copy, "transformer/config.json", cap_feat_dim=64)
    error = refused_folder(copy)
    assert error.metadata["file"] == "transformer/config.json"
    assert "tensor cap_embedder.0.weight has shape [48], config.json requires [64]" in error.message


@pytest.mark.parametrize(
    "changed",
    [{"axes_lens": []}, {"axes_lens": [16, 64, 64]}, {"dim": 0}, {"dim": -64}, {"n_heads": 7}, {"n_heads": 0},
     {"n_layers": "three"}, {"axes_dims": None}, {"cap_feat_dim": "wide"}],
)  # fmt: skip
def test_a_config_that_makes_no_model(changed: dict[str, Any], copy: Path) -> None:
    edit(copy, "transformer/config.json", **changed)
    error = refused_folder(copy)
    assert error.metadata["file"] == "transformer/config.json" and "\n" not in error.message


@pytest.mark.parametrize(
    ("part", "key", "value", "remedy"),
    [
        ("transformer", "t_scale", None, "copy the file again from its checkpoint"),
        ("transformer", "dim", "192", "copy the file again from its checkpoint"),
        ("transformer", "qk_norm", False, "copy the file again from its checkpoint, or use another checkpoint"),
        ("vae", "norm_num_groups", "many", "copy the file again from its checkpoint"),
    ],
)
def test_a_bad_value_is_named_with_one_remedy(part: str, key: str, value: object, remedy: str, copy: Path) -> None:
    edit(copy, f"{part}/config.json", **{key: value})
    error = refused_folder(copy)
    assert error.message.startswith(f"{part}/config.json: {key}: expected ") and error.message.endswith(f"; {remedy}")
    assert (error.metadata["file"], error.metadata["key"]) == (f"{part}/config.json", key)


@pytest.mark.parametrize(("steps", "shown"), [("1000", '"1000"'), (500, "500"), (None, "null")])
def test_a_wrong_number_of_training_timesteps_is_shown_as_json(steps: object, shown: str, copy: Path) -> None:
    edit(copy, "scheduler/scheduler_config.json", num_train_timesteps=steps)
    assert f"says num_train_timesteps {shown}, expected" in refused_folder(copy).message


@pytest.mark.parametrize("key", ["use_dynamic_shifting", "use_karras_sigmas", "stochastic_sampling"])
def test_a_schedule_that_would_be_another(key: str, copy: Path) -> None:
    edit(copy, "scheduler/scheduler_config.json", **{key: True})
    assert key in refused_folder(copy).message


def test_a_vae_of_another_model(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    assert refused_folder(copy).metadata["file"] == "vae/"


@pytest.mark.parametrize("scaling", [0.0, None, -1.0])
def test_a_vae_that_scales_by_nothing(scaling: object, copy: Path) -> None:
    edit(copy, "vae/config.json", scaling_factor=scaling)
    assert refused_folder(copy).metadata["file"] == "vae/config.json"


@pytest.mark.parametrize("file", ["tokenizer/chat_template.jinja", "tokenizer/tokenizer.json"])
def test_a_broken_encoder_beside_it_leaves_embeddings_unverified(file: str, demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "demo"))
    (folder / file).write_bytes(b"\xff" if file.endswith("jinja") else b'{"model": 3, "added_tokens": [1]}')
    encoder = identify(folder, "demo", tmp_path / "cache").encoder
    assert (encoder.family, encoder.width, encoder.tokenizer_digest) == ("qwen3", 128, "")


def test_the_same_tokenizer_in_other_files(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "demo"))
    (folder / "tokenizer/tokenizer.json").unlink()
    for path in [*folder.rglob("*.json"), *folder.rglob("*.jinja"), *folder.rglob("*.txt")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert identify(folder, "demo", tmp_path / "cache").encoder == identify(demo, "demo", tmp_path / "cache").encoder


def test_weights_of_a_text_encoder_that_cannot_be_read_leave_its_tokenizer_known(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "demo"))
    file = folder / "text_encoder" / "model.safetensors"
    save_file(load_file(file) | {"model.layers.0.mlp.up_proj.scale_weight": torch.ones(1)}, file)
    encoder, expected = (identify(each, "demo", tmp_path / "cache").encoder for each in (folder, demo))
    assert not encoder.weights_digest and expected.weights_digest
    assert encoder.tokenizer_digest == expected.tokenizer_digest


async def test_defaults_that_would_be_refused_are_not_served(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    (copy / "zrelay.json").write_text(json.dumps({"num_inference_steps": 10_000}))
    with pytest.raises(CheckpointError, match=r"zrelay.json.*num_inference_steps: expected 1 to 100, got 10000"):
        await GeneratorServicer(GeneratorConfig(model=copy, device="cpu")).load()


async def test_weights_that_paint_nothing_are_not_served(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    weights = load_file(copy / WEIGHTS)
    weights["layers.0.attention.to_k.weight"][0, 0] = torch.nan
    save_file(weights, copy / WEIGHTS, {"format": "pt"})
    service = GeneratorServicer(GeneratorConfig(model=copy, device="cpu"))
    with pytest.raises(CheckpointError, match=r"layers.0.attention.to_k.weight holds NaN or infinity") as caught:
        await service.load()
    assert "--dtype" not in caught.value.message
    assert caught.value.metadata["tensor"] == "layers.0.attention.to_k.weight"


async def test_a_device_that_is_not_here(tiny: Path) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has mps")
    with pytest.raises(FailedPrecondition, match="device: expected one of cpu, which this machine has, got mps"):
        await GeneratorServicer(GeneratorConfig(model=tiny, device="mps")).load()


def test_what_running_out_of_memory_looks_like() -> None:
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("other"))


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from zrelay_generator.__main__ import main\n"
        "from click.testing import CliRunner\n"
        "out = CliRunner().invoke(main, ['--help'])\n"
        "assert out.exit_code == 0 and '--tick-tokens' in out.output, out.output\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'PIL', 'grpc'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("part", ["transformer", "vae", "scaling"])
def test_the_image_depends_on_transformer_and_vae(copy: Path, tmp_path: Path, part: str) -> None:
    before = identify(copy, "tiny", tmp_path / "cache")
    if part == "scaling":
        edit(copy, "vae/config.json", scaling_factor=0.5)
    else:
        file = copy / part / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        name = sorted(weights)[0]
        save_file(weights | {name: weights[name] * 0.5}, file)
    after = identify(copy, "tiny", tmp_path / "cache")
    assert after.image_digest != before.image_digest
    assert (after.transformer_digest != before.transformer_digest) == (part == "transformer")
    assert (after.vae_digest != before.vae_digest) == (part != "transformer")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "name"), [(ZImageTransformer2DModel, "transformer"), (AutoencoderKL, "vae")])
def test_modules_are_bitwise_those_of_from_pretrained(demo: Path, kind: Any, name: str, dtype: torch.dtype) -> None:
    component = open_pipeline(demo).component(name)
    expected = kind.from_pretrained(demo / name, dtype=dtype, use_safetensors=True, local_files_only=True)
    made = load_component(kind, component, WeightFiles(component), CPU, dtype)
    assert dict(made.named_buffers()).keys() == dict(expected.named_buffers()).keys()
    assert repr(made) == repr(expected) and not made.training
    stored, wanted = made.state_dict(), expected.state_dict()
    assert stored.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(stored[key], tensor) and stored[key].dtype == tensor.dtype
        assert stored[key].stride() == tensor.stride()


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_attention_of_an_old_vae_has_other_names(demo: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(demo / "vae", tmp_path / "vae"))
    file = copied / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    renamed = {}
    for key, tensor in tensors.items():
        new = next((new for new in OLD_NAMES if f".attentions.0.{new}." in key), None)
        renamed[key if new is None else key.replace(f".{new}.", f".{OLD_NAMES[new]}.")] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file, {"format": "pt"})
    component = replace(open_pipeline(demo).component("vae"), path=copied, weights=(file,))
    made = load_component(AutoencoderKL, component, WeightFiles(component), CPU, torch.float32)
    assert all(torch.equal(made.state_dict()[key], tensor) for key, tensor in tensors.items())
    expected = AutoencoderKL.from_pretrained(copied, use_safetensors=True, local_files_only=True)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in expected.state_dict().items())
    first = next(key for key in tensors if ".attentions.0.to_q.weight" in key)
    save_file(renamed | {first: tensors[first].clone()}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="are the same tensor"):
        load_component(AutoencoderKL, component, WeightFiles(component), CPU, torch.float32)


def test_digests_are_those_of_what_was_loaded(demo: Path, tmp_path: Path) -> None:
    made = load_model(demo, CPU, torch.float32, cache=tmp_path / "cache")
    pipeline = open_pipeline(demo)
    assert made.weights_digests == {name: weights_digest(pipeline.component(name)) for name in ("transformer", "vae")}


@pytest.mark.parametrize(
    ("file", "change"), [("transformer/config.json", {"t_scale": 500.0}), ("vae/config.json", {"scaling_factor": 0.5})]
)
def test_the_identity_is_that_of_the_model_in_memory(
    copy: Path, tmp_path: Path, file: str, change: dict[str, Any]
) -> None:
    before = identify(copy, "tiny", tmp_path / "cache")
    model = load_model(copy, CPU, torch.float32)
    edit(copy, file, **change)
    loaded = identify_loaded(copy, "tiny", tmp_path / "cache", model.weights_digests, model.configurations)
    assert loaded == before
    assert identify(copy, "tiny", tmp_path / "cache").image_digest != before.image_digest


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_every_tensor_of_a_file_is_used(copy: Path, part: str) -> None:
    file = copy / part / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"control.weight": torch.zeros(3)}, file, {"format": "pt"})
    error = refused_folder(copy)
    assert "control.weight" in error.message and error.metadata["file"] == f"{part}/config.json"


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_value_of_either_part_that_is_not_finite_is_named(copy: Path, part: str) -> None:
    file = copy / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = torch.inf
    save_file(tensors, file, {"format": "pt"})
    error = refused_folder(copy)
    assert f"{part}/diffusion_pytorch_model.safetensors: tensor {name} holds NaN or infinity" in error.message


def test_integer_weights_are_refused_before_anything_is_loaded(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    whole = {name: tensor.to(torch.int8) if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    save_file(whole, copy / WEIGHTS)
    with pytest.raises(CheckpointError, match="integer weights without scales"):
        open_pipeline(copy).component("transformer")
