"""Compares loading a transformer with one plain pass over its files: `python benchmarks/loading.py [--layers 1]`.

The transformer has random weights in the published layout: bfloat16, in shards with an index. The files stay in the
page cache, so that the times are those of reading, hashing and copying from memory.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from safetensors.torch import save_file

from zrelay_generator.model.loading import load_component
from zrelay_shared.checkpoints import ComponentFolder
from zrelay_shared.weight_files import WeightFiles

CPU = torch.device("cpu")
_SHARD_BYTES = 512 << 20
_PLAIN_CHUNK = 16 << 20


def write_transformer(folder: Path, layers: int) -> ComponentFolder:
    """Writes a transformer of the published width with `layers` main blocks and one refiner block of each kind."""
    with torch.device("meta"):
        model: Any = ZImageTransformer2DModel(n_layers=layers, n_refiner_layers=1)
    model.save_config(folder)
    generator, size = torch.Generator().manual_seed(0), 0
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in model.state_dict().items():
        if size > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = torch.randn(tensor.shape, generator=generator, dtype=torch.bfloat16) * 0.02
        size += shards[-1][name].nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"diffusion_pytorch_model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = json.loads((folder / "config.json").read_text())
    return ComponentFolder(
        "transformer", folder, config, tuple(folder / file for file in sorted(set(weight_map.values()))), weight_map
    )


def plain_pass(component: ComponentFolder) -> None:
    """Reads and hashes the files from beginning to end, in one thread."""
    buffer = bytearray(_PLAIN_CHUNK)
    for path in component.weights:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                digest.update(memoryview(buffer)[:got])


def load(component: ComponentFolder, cache: Path | None, *, digest: str = "") -> str:
    """Loads the transformer and returns its digest; a `digest` that is given is not computed."""
    weights = WeightFiles(component, cache=cache)
    weights.digest = weights.digest or digest
    load_component(ZImageTransformer2DModel, component, weights, CPU, torch.bfloat16)
    return weights.digest


def least(work: Callable[[], object], rounds: int = 3) -> float:
    """Returns the shortest of a few times in seconds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Writes the transformer, measures, and prints seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=1, help="main blocks of 0.36 GB each")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "transformer"
        folder.mkdir()
        component = write_transformer(folder, parser.parse_args().layers)
        size = sum(path.stat().st_size for path in component.weights)
        cache = Path(made) / "cache"
        plain = least(lambda: plain_pass(component))
        first = least(lambda: load(component, None))
        digest = load(component, cache)
        second = least(lambda: load(component, cache))
        alone = least(lambda: load(component, None, digest=digest))
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        print(f"{size / 1e9:.2f} GB in {len(component.weights)} files, {threads} processors")
        print(f"a  one plain pass that reads and hashes   {plain:6.2f} s")
        print(f"b  first start: load and digest           {first:6.2f} s   {first / plain:.2f} x a (goal 1.3)")
        print(f"c  second start: load, digest cached      {second:6.2f} s   {second - alone:+.2f} s beside d")
        print(f"d  loading alone                          {alone:6.2f} s")


if __name__ == "__main__":
    main()
