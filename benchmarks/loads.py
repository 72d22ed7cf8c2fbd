"""What the engine's benchmark paints on each checkpoint."""

from dataclasses import dataclass
from typing import Any

PROMPT = "a small red circle on a blue background"
"""What every benchmark asks for unless it says otherwise."""


@dataclass(frozen=True)
class BenchmarkJobs:
    """What is painted on a checkpoint: images, sides and steps of the mixed load, a long and a short job."""

    jobs: int
    sides: tuple[int, ...]
    steps: int
    long: dict[str, Any]
    short: dict[str, Any]


LOADS = {
    "tiny": BenchmarkJobs(
        4,
        (64, 96),
        2,
        {"width": 256, "height": 256, "num_inference_steps": 12},
        {"width": 64, "height": 64, "num_inference_steps": 2},
    ),
    "demo": BenchmarkJobs(
        16,
        (64, 128, 192),
        8,
        {"width": 384, "height": 384, "num_inference_steps": 16},
        {"width": 128, "height": 128, "num_inference_steps": 8},
    ),
    "mid": BenchmarkJobs(
        16,
        (64, 128, 256),
        4,
        {"width": 384, "height": 384, "num_inference_steps": 8},
        {"width": 128, "height": 128, "num_inference_steps": 4},
    ),
}
