"""Folders that are a checkpoint, and those that are not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.refusals import refused
from zrelay_generator.model.identity import identify
from zrelay_generator.model.loading import load_model
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.errors import CheckpointError, FailedPrecondition
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.torch_devices import is_out_of_memory

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
    assert "layers.1.attention.to_k.weight" in refused_folder(copy).message


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
