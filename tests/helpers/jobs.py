"""The prompt and the job sizes that tests use with the demo checkpoint."""

from typing import Any

PROMPT = "a small red circle on a blue background"
SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2}
"""Some 50 ms on a CPU."""
QUICK: dict[str, Any] = {**SMALL, "seed": 7}
"""The same with a seed."""
QUICK_FLAGS = ("--size", "64x64", "--num-inference-steps", "2")
"""SMALL on the command line."""
ENDLESS: dict[str, Any] = {"width": 512, "height": 512, "num_inference_steps": 100}
"""A minute and more on a CPU: tests cancel it and never wait for it."""
ENDLESS_FLAGS = ("--size", "512x512", "--num-inference-steps", "100")
NOBODY = "127.0.0.1:1"
"""An endpoint at which nothing listens."""
