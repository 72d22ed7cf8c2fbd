"""The denoising loop of docs/explanation/engine.md, run as it stands there, against the engine."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from zrelay_generator.model.latents import noise
from zrelay_generator.model.transformer import Segment

from .engine_harness import EngineHarness

DOCS = Path(__file__).parents[2] / "docs/explanation/engine.md"


def test_the_loop_in_the_documentation_generates_what_the_engine_does(demo: Path, load: Any, spec: Any) -> None:
    (code,) = re.findall(r"```python\n(def generate.*?)```", DOCS.read_text(), re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 15
    names: dict[str, Any] = {"noise": noise, "pairwise": pairwise, "Segment": Segment}
    exec(code, names)
    model, asked = load(demo), spec(steps=4, seed=3)
    decoded: list[torch.Tensor] = []
    kept = type("Kept", (), {"factor": model.vae.factor, "decode": lambda self, latents: decoded.append(latents)})()
    reference = type("Model", (), {"transformer": model.transformer, "vae": kept})
    with torch.inference_mode():
        names["generate"](reference, asked.prompt.embeds, asked.sampling)
    (latents,) = EngineHarness(model).paint(asked)
    torch.testing.assert_close(decoded[0], latents, rtol=1e-4, atol=1e-5)
