"""Forwards of a full-size checkpoint on one device: alone, in mixed company, against diffusers and against the floor.

    python benchmarks/gpu.py [--sizes 512,1024,2048] [--rounds 10] [--results benchmarks/results] [--try compile,graph]

Makes a checkpoint of the published shape with random weights under `--work` (12.3 GB, once), or takes `--model`. Both
sides run on the same tensors in one process: the packed forward of the engine, and diffusers' own module image by
image (its pipeline for whole pictures). The floor is the operations of a forward at the rate of a plain matrix product
that is measured in the same run. `--try` says what could be gained by what the engine does not do: blocks compiled by
torch.compile, the whole forward as one CUDA graph. Written for CUDA and not run there yet: UNMEASURED until a file with
the hardware's name lies under benchmarks/results. `--device cpu --model DIR` runs it in miniature.
"""

import argparse
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import floor
import forwards
import random_checkpoint
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from forwards import Picture
from measuring import Goal, Say, sayer, tell
from trials import TRIALS
from whole import loaded, paint

from zrelay_generator.model.attention import spans_of
from zrelay_generator.model.transformer import PackedTransformer
from zrelay_generator.model.vae import Vae

_TEXTS, _TIMESTEPS = (40, 100, 250), (0.1, 0.5, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a pipeline folder; none: one of the published shape is made")
    parser.add_argument("--work", type=Path, default=Path("out/bench"), help="where that one is kept")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--sizes", default="512,1024,2048", help="sides in pixels, separated by commas")
    parser.add_argument("--steps", type=int, default=8, help="forwards of a whole picture")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--try", dest="trials", default="", help=f"of {', '.join(TRIALS)}, separated by commas")
    parser.add_argument("--results", type=Path, help="folder for a file with the hardware's name")
    parser.add_argument("--json", action="store_true", help="print one object of goal id to measured value")
    args = parser.parse_args()
    say, device = sayer(args.json), torch.device(args.device)
    folder = args.model or random_checkpoint.make(args.work / "full", random_checkpoint.FULL, device=args.device)
    bench = ForwardBenchmark.load(folder, device, getattr(torch, args.dtype), args.rounds, say)
    sizes = [int(size) for size in args.sizes.split(",")]
    trials = [name for name in args.trials.split(",") if name]
    goals = bench.measure(sizes, args.steps, trials)
    tell(goals, args.json)
    if args.results is not None:
        file = args.results / f"gpu-{re.sub(r'[^a-z0-9]+', '-', bench.hardware.lower()).strip('-')}.json"
        measured = {goal.id: round(goal.value, 4) for goal in goals}
        file.write_text(
            json.dumps({"hardware": bench.hardware, "torch": torch.__version__, **measured}, indent=1) + "\n"
        )
        say(f"written to {file}")


@dataclass(frozen=True)
class ForwardBenchmark:
    """One set of weights, seen by both sides."""

    reference: Any
    packed: PackedTransformer
    autoencoder: Any
    scheduler: Any
    device: torch.device
    rate: float
    rounds: int
    say: Say

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype, rounds: int, say: Say) -> "ForwardBenchmark":
        where = {"device_map": {"": str(device)}, "dtype": dtype}
        reference = ZImageTransformer2DModel.from_pretrained(folder / "transformer", **where).eval()
        reference.requires_grad_(False)
        autoencoder = AutoencoderKL.from_pretrained(folder / "vae", **where).eval().requires_grad_(False)
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        rate = floor.matmul_rate(device, dtype, 8192 if device.type == "cuda" else 512)
        bench = cls(reference, forwards.packed(reference), autoencoder, scheduler, device, rate, rounds, say)
        varlen = spans_of([32, 64], device).ends is not None
        say(
            f"{bench.hardware}, {dtype}: matrix product {rate / 1e12:.1f} TFLOP/s; attention of mixed lengths: "
            f"{'one varlen kernel' if varlen else 'one call for each length'}"
        )
        return bench

    @property
    def hardware(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def measure(self, sizes: Sequence[int], steps: int, trials: Sequence[str]) -> list[Goal]:
        alone = [Picture(size, text_tokens=100) for size in sizes]
        goals = [goal for picture in alone for goal in self._alone(picture)]
        mixtures = {
            "three sizes": [Picture(size, _TEXTS[n % 3], _TIMESTEPS[n % 3]) for n, size in enumerate((*sizes, *sizes))],
            f"eight of {sizes[0]}": [Picture(sizes[0], _TEXTS[n % 3], _TIMESTEPS[n % 3]) for n in range(8)],
        }
        for name, pictures in mixtures.items():
            goals += self._company(name, pictures)
        for name in trials:
            goals += [self._trial(name, picture) for picture in alone]
        goals += [self._decode(size) for size in sizes]
        middle = sizes[len(sizes) // 2]
        return goals + self._whole(middle, steps)

    def _alone(self, picture: Picture) -> list[Goal]:
        """ms of one forward of one image; against diffusers' and against the floor."""
        segments, side = forwards.segments(self.packed, [picture]), picture.side
        ours = self._seconds(lambda: self.packed.forward(segments))
        theirs = self._seconds(self._reference([picture]))
        least = floor.forward_flop(self.packed.weights, [picture]) / self.rate
        self.say(f"{side}: a forward {ours * 1e3:.1f} ms, diffusers {theirs * 1e3:.1f} ms, floor {least * 1e3:.1f} ms")
        return [
            Goal(f"forward.{side}", f"a forward at {side} / diffusers'", ours / theirs, 1.0),
            Goal(f"floor.{side}", f"a forward at {side} / its operations at the rate of a product", ours / least, 1.15),
            Goal(f"ms.{side}", f"a forward at {side}", ours * 1e3, 80.0 * (side / 1024) ** 2, "ms"),
        ]

    def _company(self, name: str, pictures: Sequence[Picture]) -> list[Goal]:
        """One forward of all against one of each, and against diffusers image by image."""
        segments = forwards.segments(self.packed, pictures)
        together = self._seconds(lambda: self.packed.forward(segments))
        apart = self._seconds(lambda: [self.packed.forward([segment]) for segment in segments])
        theirs = self._seconds(self._reference(pictures))
        self.say(
            f"{name}: together {together * 1e3:.1f} ms, one by one {apart * 1e3:.1f} ms, diffusers one by one "
            f"{theirs * 1e3:.1f} ms"
        )
        key = name.replace(" ", "-")
        return [
            Goal(f"mixed.{key}", f"one forward of {name} / diffusers image by image", together / theirs, 1.0),
            Goal(f"packed.{key}", f"one forward of {name} / our own one by one", together / apart, 1.05),
        ]

    def _trial(self, name: str, picture: Picture) -> Goal:
        segments = forwards.segments(self.packed, [picture])
        plain = self._seconds(lambda: self.packed.forward(segments))
        with TRIALS[name](self.packed, segments) as work:
            other = self._seconds(work)
        self.say(f"{picture.side} with {name}: {other * 1e3:.1f} ms, without {plain * 1e3:.1f} ms")
        return Goal(f"{name}.{picture.side}", f"a forward at {picture.side} with {name} / without", other / plain, 1.0)

    def _decode(self, side: int) -> Goal:
        vae = Vae(self.autoencoder)
        latents = torch.randn(16, side // vae.factor, side // vae.factor, device=self.device)
        took = self._seconds(lambda: vae.decode(latents))
        least = floor.decode_flop(side * side) / self.rate
        self.say(f"{side}: decode {took * 1e3:.1f} ms, floor of the published VAE {least * 1e3:.1f} ms")
        return Goal(f"decode.{side}", f"a decode at {side}", took * 1e3, 2.0 * least * 1e3, "ms")

    def _whole(self, side: int, steps: int) -> list[Goal]:
        """P1 at 1024: the engine from embeddings to the file's bytes, and the pipeline to the same."""
        model, embeds = loaded(self.packed, self.autoencoder), torch.randn(100, self.packed.weights.width)
        pipeline: Any = ZImagePipeline(self.scheduler, self.autoencoder, None, None, self.reference)
        pipeline.set_progress_bar_config(disable=True)
        given = [embeds.to(self.device, self.packed.weights.dtype)]

        def reference() -> None:
            image = pipeline(
                prompt_embeds=given, width=side, height=side, num_inference_steps=steps, guidance_scale=0.0
            ).images[0]
            image.save(io.BytesIO(), "PNG")

        ours = self._seconds(lambda: paint(model, embeds, side, steps))
        theirs = self._seconds(reference)
        self.say(f"{side} in {steps} forwards to PNG: {ours * 1e3:.0f} ms, diffusers' pipeline {theirs * 1e3:.0f} ms")
        return [
            Goal(f"P1.{side}", f"one {side} picture, {steps} forwards, PNG out", ours * 1e3, 680.0, "ms"),
            Goal(f"P1.{side}.ratio", "the same / diffusers' pipeline", ours / theirs, 0.95),
        ]

    def _reference(self, pictures: Sequence[Picture]) -> Callable[[], object]:
        """diffusers' module, one image after another."""
        weights = self.packed.weights
        like: dict[str, Any] = {"device": self.device, "dtype": weights.dtype}
        calls = [
            (
                torch.randn(
                    weights.channels, 1, picture.side // forwards.FACTOR, picture.side // forwards.FACTOR, **like
                ),
                torch.tensor([picture.timestep], **like),
                torch.randn(picture.text_tokens, weights.width, **like),
            )
            for picture in pictures
        ]
        return lambda: [self.reference([x], t, [cap], return_dict=False) for x, t, cap in calls]

    def _seconds(self, work: Callable[[], object]) -> float:
        return forwards.seconds(work, self.device, self.rounds, warm=2)


if __name__ == "__main__":
    main()
