"""The step engine's measurements over its services, side by side with diffusers in one run: P2, P3, P4, P5, P8, P10.

    python benchmarks/engine.py [--json] [--only P3,P5] [--checkpoints demo,mid] [--rounds 7] [--work out/bench]

Medians, in turns; ratios are what counts, absolute times of a shared machine mean little. `--json` prints one object of
goal id to measured value: an id by itself is the mid-size random checkpoint, with a suffix the demo checkpoint or a
part of the goal. `tiny` is the demo checkpoint with next to nothing to do, to try the script. Services run as real
processes over loopback and are asked through the client library; the reference is diffusers' pipeline in this process,
on the same weights, in the dtype that the services compute in, with as many threads as a service takes (the cores that
this process may use, less one).
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import memory
import random_checkpoint
import relay
import torch
from loads import LOADS, PROMPT, BenchmarkJobs
from measuring import Goal, Say, sayer, tell
from pinging import pings
from scheduling import cancelling, short_behind_long
from servers import ServiceProcess, started
from throughput import throughput

from zrelay_client import Client
from zrelay_demo import CHECKPOINT
from zrelay_shared.service.worker import serving_threads

GOALS = ("P2", "P3", "P4", "P5", "P8", "P10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one object of goal id to measured value")
    parser.add_argument("--only", default=",".join(GOALS), help="goals to measure, separated by commas")
    parser.add_argument("--checkpoints", default="demo,mid", help="of demo, mid, tiny, separated by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("out/bench"), help="where the random checkpoint is kept")
    args = parser.parse_args()
    torch.set_num_threads(serving_threads(None))
    say, wanted = sayer(args.json), set(args.only.split(","))
    goals: list[Goal] = []
    for name in args.checkpoints.split(","):
        model = random_checkpoint.make(args.work / name) if name == "mid" else CHECKPOINT
        goals += on_checkpoint(name, model, wanted, args.rounds, say)
    tell(goals, args.json)


def on_checkpoint(name: str, model: Path, wanted: set[str], rounds: int, say: Say) -> list[Goal]:
    """The wanted goals on one checkpoint."""
    with (
        started("encoder", model) as encoder,
        started("generator", model) as generator,
        Client(encoder=encoder.endpoint, generator=generator.endpoint) as client,
    ):
        bench = EngineBenchmark(name, model, client, encoder, generator, max(1, rounds), say)
        goals: list[Goal] = []
        for goal in GOALS[::-1]:  # memory first: a peak never falls
            if goal in wanted:
                goals = bench.measures[goal]() + goals
        return goals


@dataclass(frozen=True)
class EngineBenchmark:
    """One checkpoint's services and what is measured on them."""

    name: str
    model: Path
    client: Client
    encoder: ServiceProcess
    generator: ServiceProcess
    rounds: int
    say: Say

    @property
    def measures(self) -> dict[str, Callable[[], list[Goal]]]:
        return {
            "P2": self.end_to_end,
            "P3": self.throughput,
            "P4": self.short_behind_long,
            "P5": self.cancelling,
            "P8": self.pings,
            "P10": self.memory,
        }

    @property
    def load(self) -> BenchmarkJobs:
        return LOADS[self.name]

    def pipeline(self) -> Any:
        """diffusers' own, on the same weights."""
        from diffusers import ZImagePipeline

        pipeline = ZImagePipeline.from_pretrained(self.model, dtype=relay.computed_in(self.client))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def end_to_end(self) -> list[Goal]:
        settings = self.client.generator_info().defaults
        asked = {name: getattr(settings, name) for name in ("width", "height", "num_inference_steps")}
        rounds = self.rounds if self.name == "mid" else 3 * self.rounds
        return [relay.end_to_end(self.name, self.client, self.pipeline(), asked, rounds, self.say)]

    def throughput(self) -> list[Goal]:
        load, rounds = self.load, max(1, self.rounds // 2)
        pipeline = self.pipeline()
        return throughput(self.name, self.client, pipeline, PROMPT, load, rounds, self.say)

    def short_behind_long(self) -> list[Goal]:
        embeds, load, endpoint = self.client.encode(PROMPT), self.load, self.generator.endpoint
        return short_behind_long(self.name, endpoint, embeds, load.long, load.short, self.rounds, self.say)

    def cancelling(self) -> list[Goal]:
        embeds, load = self.client.encode(PROMPT), self.load
        return [cancelling(self.name, self.generator.endpoint, embeds, load.long, self.rounds + 1, self.say)]

    def pings(self) -> list[Goal]:
        def busy() -> None:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda seed: self.paint(self.load.long, seed), range(4)))

        name = "P8" if self.name == "mid" else f"P8.{self.name}"
        return [pings(self.generator.endpoint, busy, self.say, name)]

    def memory(self) -> list[Goal]:
        info, encodes = self.client.generator_info(), self.client.encoder_info()
        dtype = info.device.compute_dtype if info.device else "float32"
        weights = sum(memory.weight_bytes(self.model, part, dtype) for part in ("transformer", "vae"))
        smallest: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2}
        pictures = {
            "a small picture": lambda: self.paint(smallest, 0),
            "the default picture": lambda: self.paint({}, 0),
            "a long job": lambda: self.paint(self.load.long, 0),
        }
        goals = [memory.memory(self.name, "generator", self.generator, weights, pictures, self.say)]
        dtype = encodes.device.compute_dtype if encodes.device else "float32"
        weights = memory.weight_bytes(self.model, "text_encoder", dtype, encodes.loaded_blocks)
        prompt = {"a prompt": lambda: self.client.encode(relay.LONG_PROMPT)}
        return [*goals, memory.memory(self.name, "encoder", self.encoder, weights, prompt, self.say)]

    def paint(self, options: dict[str, Any], seed: int) -> None:
        """One picture of the benchmark's prompt."""
        asked: dict[str, Any] = {**options, "seed": seed}
        self.client.generate(PROMPT, **asked)


if __name__ == "__main__":
    main()
