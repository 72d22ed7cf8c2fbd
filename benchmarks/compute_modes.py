"""Compute modes of a CPU, side by side in one run: bfloat16, float32, and float32 with weights in bfloat16.

    python benchmarks/compute_modes.py [--blocks 3] [--tokens 27,100,512] [--model encoder,generator] [--json]

Runs the services' own networks with random weights of the published widths (Qwen3-4B, Z-Image) and as many blocks as
`--blocks` says, in turns, and reports medians and their ratios to bfloat16. On a CPU with bfloat16 units, emulate one
without: ONEDNN_MAX_CPU_ISA=AVX512_CORE. `--scale small` runs it in miniature.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from machine import cpu_name
from measuring import processor_seconds, sayer, seconds, side_by_side
from transformers import Qwen3Config

from zrelay_encoder.model.network import TextEncoder
from zrelay_generator.model.attention import spans_of
from zrelay_generator.model.blocks import run_block
from zrelay_generator.model.weights import compute_in, transformer_weights
from zrelay_shared.layers import LayerPlan
from zrelay_shared.limits import BFLOAT16_WEIGHTS
from zrelay_shared.service.process import keep_large_buffers

Runs = dict[str, Callable[[int], object]]
"""Name of the mode -> runs a forward of so many tokens."""
DTYPES = ("bfloat16", "float32", BFLOAT16_WEIGHTS)
GOALS = {100: 0.5, 512: 0.3}
"""Tokens -> largest ratio of bfloat16-weights to bfloat16 on a CPU without bfloat16 units."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--tokens", default="27,100,512")
    parser.add_argument("--model", default="encoder,generator")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="leave out those that do not fit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: with --threads 1 on a busy machine"
    )
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--results", type=Path, help="write the results to this file, too")
    parser.add_argument("--json", action="store_true", help="print one object")
    args = parser.parse_args()
    keep_large_buffers()  # as a service does
    torch.set_num_threads(args.threads)
    say = sayer(args.json)
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "threads": args.threads,
        "clock": args.clock,
        "torch": torch.__version__,
        "blocks": args.blocks,
        "scale": args.scale,
        "seconds": {},
        "ratios_to_bfloat16": {},
    }
    clock = processor_seconds if args.clock == "cpu" else seconds
    makers = {"encoder": encoder_runs, "generator": generator_runs}
    for name in args.model.split(","):
        runs = makers[name](args.blocks, args.scale == "small", args.dtypes.split(","))
        for tokens in map(int, args.tokens.split(",")):
            with torch.inference_mode():
                times = side_by_side(
                    {mode: partial(run, tokens) for mode, run in runs.items()}, args.rounds, clock=clock
                )
            key = f"{name} {tokens}"
            found["seconds"][key] = {mode: round(value, 5) for mode, value in times.items()}
            if "bfloat16" in times:
                ratios = {mode: round(value / times["bfloat16"], 3) for mode, value in times.items()}
                found["ratios_to_bfloat16"][key] = ratios
                goal = f" (goal {GOALS[tokens]:g})" if tokens in GOALS else ""
                say(f"{name}, {tokens} tokens: " + ", ".join(f"{m} {r:.2f}" for m, r in ratios.items()) + goal)
        del runs
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(found, indent=2) + "\n")
    if args.json:
        json.dump(found, sys.stdout)
        print()


def encoder_runs(blocks: int, small: bool, dtypes: list[str]) -> Runs:
    """Makes blocks of the size of Qwen3-4B's with random weights and a small vocabulary, in each compute mode."""
    width, heads = (64, 4) if small else (2560, 32)
    config = Qwen3Config(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=3 * width if small else 9728,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        head_dim=128,
    )
    runs: Runs = {}
    original = TextEncoder(config, LayerPlan(blocks, False))
    rotary = original.rotary_emb
    original.to_empty(device="cpu")
    original.rotary_emb = rotary
    original.to(torch.bfloat16).eval().requires_grad_(False)
    for parameter in original.parameters():
        parameter.normal_(std=0.02)
    for dtype in dtypes:
        model = original if dtype == "bfloat16" else copy.deepcopy(original)
        if dtype == "float32":
            model.float()
        if dtype == BFLOAT16_WEIGHTS:
            model.compute_in(torch.float32)

        def run(tokens: int, model: TextEncoder = model) -> list[torch.Tensor]:
            embeds: list[torch.Tensor] = model([[1] * tokens], LayerPlan(blocks, False))
            return embeds

        runs[dtype] = run
    return runs


def generator_runs(blocks: int, small: bool, dtypes: list[str]) -> Runs:
    """Main blocks of a Z-Image transformer over one sequence."""
    width, heads = (96, 2) if small else (3840, 30)
    axes = [16, 16, 16] if small else [32, 48, 48]
    original: Any = _transformer(width, heads, axes, blocks)
    runs: Runs = {}
    for dtype in dtypes:
        model = original if dtype == "bfloat16" else copy.deepcopy(original)
        if dtype == "float32":
            model.float()
        if dtype == BFLOAT16_WEIGHTS:
            compute_in(model, torch.float32)
        weights = transformer_weights(model)

        def run(tokens: int, weights: Any = weights) -> torch.Tensor:
            states = torch.ones(tokens, width, dtype=weights.dtype)
            rope = torch.ones(tokens, 1, sum(axes) // 2, dtype=torch.complex64)
            spans = spans_of([tokens], states.device)
            for block in weights.layers:
                states = run_block(block, states, spans, rope, block.norms.unbind())
            return states

        runs[dtype] = run
    return runs


def _transformer(width: int, heads: int, axes: list[int], blocks: int) -> Any:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model: Any = ZImageTransformer2DModel(
            dim=width,
            n_layers=blocks,
            n_refiner_layers=1,
            n_heads=heads,
            n_kv_heads=heads,
            cap_feat_dim=width,
            axes_dims=axes,
            axes_lens=[64, 64, 64],
        )
    finally:
        torch.set_default_dtype(torch.float32)
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    return model


if __name__ == "__main__":
    main()
