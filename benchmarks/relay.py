"""The relay's measurements, side by side with diffusers in one run: P2, P6, P7, P8, P9 of the performance goals.

    python benchmarks/relay.py [--json] [--only P7,P9] [--rounds 7] [--work out/bench]

Medians, in turns; ratios are what counts, absolute times of a shared machine mean little. `--json` prints one object of
goal id to measured value. Services run as real processes, started by `zrelay up`; the reference is diffusers' pipeline
in this process, on the same weights, in the dtype that the services compute in, with as many threads as a service takes
(the cores this process may use, less one).
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import handover
import link
import random_checkpoint
import torch
from loads import PROMPT
from measuring import Goal, Say, sayer, side_by_side, tell
from pinging import pings

from zrelay_client import Client
from zrelay_demo import CHECKPOINT
from zrelay_shared.service.worker import serving_threads

LONG_PROMPT = "three large striped orange stars next to a small dotted purple heart on a plain white background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one object of goal id to measured value")
    parser.add_argument("--only", default="P2,P6,P7,P8,P9", help="goals to measure, separated by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("out/bench"), help="where the random checkpoint is kept")
    args = parser.parse_args()
    wanted = set(args.only.split(","))
    torch.set_num_threads(serving_threads(None))
    say = sayer(args.json)
    goals: list[Goal] = []
    if "P7" in wanted:
        goals += hand_over(say)
    if "P9" in wanted:
        goals += start_up(args.rounds)
    if wanted & {"P2", "P6", "P8"}:
        goals += on_checkpoint("demo", CHECKPOINT, wanted, args.rounds * 3, say)
        mid = random_checkpoint.make(args.work / "mid")
        goals += on_checkpoint("mid", mid, wanted, max(3, args.rounds // 2), say)
    tell(goals, args.json)


def hand_over(say: Say) -> list[Goal]:
    relay, tcp = handover.measure()
    say(f"P7: hand-over {relay * 1e3:.2f} ms, raw TCP {tcp * 1e3:.2f} ms")
    goals = [Goal("P7", "hand-over of 7.7 MB, checks on / raw TCP down + up", relay / tcp, 3.6)]
    if why := link.possible():
        say(f"P7.link: not measured: {why}")
        return goals
    relay, tcp = handover.on_link()
    say(f"P7.link: hand-over {relay * 1e3:.1f} ms, raw TCP {tcp * 1e3:.1f} ms")
    return [*goals, Goal("P7.link", "the same over a 1 Gbit link / raw TCP over that link", relay / tcp, 1.05)]


def start_up(rounds: int) -> list[Goal]:
    zrelay = str(Path(sys.executable).with_name("zrelay"))
    times = side_by_side(
        {
            "python": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
            "help": lambda: subprocess.run([zrelay, "--help"], check=True, capture_output=True),
        },
        rounds * 3,
    )
    with stack(CHECKPOINT) as env:
        memory = client_memory(env)
    return [Goal("P9", "`zrelay --help` / `python -c pass`", times["help"] / times["python"], 5.0), memory]


@contextmanager
def stack(model: Path) -> Iterator[dict[str, str]]:
    """Encoder and generator of `zrelay up` on free ports; the environment in which the CLI finds them."""
    with tempfile.TemporaryDirectory() as state:
        env = {**os.environ, "ZRELAY_STATE": state, "ZRELAY_CONFIG": str(Path(state) / "none.toml")}
        zrelay = str(Path(sys.executable).with_name("zrelay"))
        subprocess.run(
            [zrelay, "up", "--detach", "--model", str(model)], check=True, env=env, stdout=subprocess.DEVNULL
        )
        try:
            yield env
        finally:
            subprocess.run([zrelay, "down"], check=True, env=env, stdout=subprocess.DEVNULL)


def on_checkpoint(name: str, model: Path, wanted: set[str], rounds: int, say: Say) -> list[Goal]:
    """P2, P6 and P8 on one checkpoint."""
    from diffusers import ZImagePipeline

    settings = json.loads((model / "zrelay.json").read_text())
    goals: list[Goal] = []
    with stack(model) as env:
        record = json.loads((Path(env["ZRELAY_STATE"]) / "stack.json").read_text())
        endpoints = {service["role"]: service["endpoint"] for service in record["services"]}
        encoder, generator = endpoints["encoder"], endpoints["generator"]
        with Client(encoder=encoder, generator=generator) as client:
            pipeline = ZImagePipeline.from_pretrained(model, dtype=computed_in(client))
            pipeline.set_progress_bar_config(disable=True)
            if "P2" in wanted:
                goals.append(end_to_end(name, client, pipeline, settings, rounds, say))
            if "P6" in wanted:
                goals.append(encoding(name, client, pipeline, rounds, say))
            if "P8" in wanted and name == "mid":
                goals.append(pings(generator, lambda: [client.generate(PROMPT, seed=seed) for seed in range(2)], say))
    return goals


def computed_in(client: Client) -> torch.dtype:
    """The dtype of both services. Raises RuntimeError where they differ: one pipeline cannot be compared with two."""
    devices = (client.encoder_info().device, client.generator_info().device)
    found = {device.compute_dtype if device else "none" for device in devices}
    if len(found) != 1:
        raise RuntimeError(f"expected encoder and generator to compute in one dtype, got {', '.join(sorted(found))}")
    (name,) = found
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def end_to_end(name: str, client: Client, pipeline: Any, settings: dict[str, Any], rounds: int, say: Say) -> Goal:
    def relay() -> None:
        client.generate(PROMPT, seed=1)

    def reference() -> None:
        image = pipeline(
            PROMPT,
            width=settings["width"],
            height=settings["height"],
            num_inference_steps=settings["num_inference_steps"],
            guidance_scale=0.0,
            generator=torch.Generator().manual_seed(1),
        ).images[0]
        image.save(io.BytesIO(), "PNG")

    times = side_by_side({"relay": relay, "diffusers": reference}, rounds)
    say(f"P2 {name}: relay {times['relay'] * 1e3:.0f} ms, diffusers {times['diffusers'] * 1e3:.0f} ms")
    id_ = "P2" if name == "mid" else f"P2.{name}"
    what = f"end to end over the services / diffusers in one process, {name} checkpoint"
    return Goal(id_, what, times["relay"] / times["diffusers"], 0.9)


def encoding(name: str, client: Client, pipeline: Any, rounds: int, say: Say) -> Goal:
    times = side_by_side(
        {
            "relay": lambda: client.encode(LONG_PROMPT),
            "diffusers": lambda: pipeline.encode_prompt(LONG_PROMPT, do_classifier_free_guidance=False),
        },
        rounds,
    )
    say(f"P6 {name}: relay {times['relay'] * 1e3:.1f} ms, diffusers {times['diffusers'] * 1e3:.1f} ms")
    id_ = "P6" if name == "mid" else f"P6.{name}"
    goal = 0.09 if name == "mid" else 0.35
    return Goal(
        id_,
        f"encoding one prompt / diffusers' encode_prompt, {name} checkpoint",
        times["relay"] / times["diffusers"],
        goal,
    )


_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Peak resident KiB of a command, asked for by a small process: a fork begins at its parent's size."""


def client_memory(env: dict[str, str]) -> Goal:
    """Peak resident memory of one `zrelay generate`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("zrelay")), "generate", PROMPT, "-o", f"{folder}/a.png"]
        ran = subprocess.run(
            [sys.executable, "-c", _PEAK, *command], env=env, check=True, capture_output=True, text=True
        )
    return Goal("P9.memory", "client process, peak resident memory", int(ran.stdout) / 1024, 60.0, "MiB")


if __name__ == "__main__":
    main()
