"""P3: sixteen jobs of three sizes through the services, all at once, against diffusers one after another."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import forwards
import torch
from loads import BenchmarkJobs
from measuring import Goal, Say, side_by_side

from zrelay_client import Client, Embeds

_FILLED = 0.9
"""A step of four images that takes more than this share of four steps of one: one image fills the device."""


def throughput(
    name: str, client: Client, pipeline: Any, prompt: str, load: BenchmarkJobs, rounds: int, say: Say
) -> list[Goal]:
    """The mixed load, and one of each size alone: there it shows what a step that does not fill the device gains.

    Both sides begin with the same prompt's embeddings. P3 is the mixture on the mid-size checkpoint.
    """
    embeds, tensors = client.encode(prompt), pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)[0]
    transformer = forwards.packed(pipeline.transformer)
    suffix = "" if name == "mid" else f".{name}"
    goals = []
    mixtures = {"": list(load.sides), **{f".{side}": [side] for side in load.sides}}
    for label, mixture in mixtures.items():
        jobs = [mixture[number % len(mixture)] for number in range(load.jobs)]
        ratio = _compared(client, embeds, pipeline, tensors, jobs, load.steps, rounds)
        note = ""
        if label:
            share = forwards.company(transformer, mixture[0], max(3, rounds))
            note = f"; a step of 4 takes {share:.2f} of 4 steps of 1" + ("" if share > _FILLED else ": not filled")
        say(f"P3 {name}{label}: {load.jobs} images of {', '.join(map(str, mixture))}: {ratio:.2f} x diffusers{note}")
        what = f"{load.jobs} jobs of {'/'.join(map(str, mixture))}, images a second / diffusers one by one, {name}"
        goals.append(Goal(f"P3{suffix}{label}", what, ratio, 1.5, at_least=True))
    return goals


def _compared(
    client: Client, embeds: Embeds, pipeline: Any, tensors: Any, sides: Sequence[int], steps: int, rounds: int
) -> float:
    def paint(number: int) -> None:
        client.generate(embeds, width=sides[number], height=sides[number], num_inference_steps=steps, seed=number)

    def relay() -> None:
        with ThreadPoolExecutor(len(sides)) as pool:
            list(pool.map(paint, range(len(sides))))

    def reference() -> None:
        for number, side in enumerate(sides):
            diffusers_image(pipeline, tensors, side, steps, number)

    times = side_by_side({"relay": relay, "diffusers": reference}, rounds)
    return times["diffusers"] / times["relay"]


def diffusers_image(pipeline: Any, tensors: Any, side: int, steps: int, seed: int) -> Any:
    """One image of the reference pipeline, from embeddings."""
    return pipeline(
        prompt_embeds=tensors,
        width=side,
        height=side,
        num_inference_steps=steps,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
