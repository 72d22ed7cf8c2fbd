"""How far company changes a picture: the same jobs painted one by one and all at once, in bfloat16 and in float32.

    python benchmarks/company.py [--json] [--pictures 48] [--dtypes bfloat16,float32]

On the demo checkpoint over its services, in three sizes at once. Says what share of pixel values differ by more than
one level, how far the worst picture is (PSNR), and of how many pictures the verdict of the checker changes.
"""

import argparse
import io
import json
import math
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from measuring import Say, sayer
from PIL import Image
from servers import started

from zrelay_client import Client, GenerateKeywords
from zrelay_demo import CHECKPOINT
from zrelay_demo.captions import canonical
from zrelay_demo.checker import check
from zrelay_demo.world import FRAMES, Scene, sample

_FRAMES = FRAMES[:3]
_AT_ONCE = 16


@dataclass(frozen=True)
class Change:
    """Of one dtype: shares of values that differ at all and by more than one level, the greatest difference in levels,
    median and least PSNR in dB (infinite where equal), and pictures whose verdict changed."""

    differ: float
    beyond_one: float
    greatest: int
    median_db: float
    least_db: float
    verdicts: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one object of measured values")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    args = parser.parse_args()
    say = sayer(args.json)
    found = {dtype: changed(CHECKPOINT, dtype, args.pictures, say) for dtype in args.dtypes.split(",")}
    if args.json:
        values = {f"same.{dtype}.beyond_one": round(change.beyond_one, 6) for dtype, change in found.items()}
        values |= {f"same.{dtype}.least_db": round(change.least_db, 2) for dtype, change in found.items()}
        print(json.dumps(values), flush=True)


def changed(model: Path, dtype: str, pictures: int, say: Say) -> Change:
    """Paints alone, then in company, and compares."""
    rng = Random("company")
    scenes = [sample(rng, unseen=True, frame=_FRAMES[number % len(_FRAMES)]) for number in range(pictures)]
    with (
        started("encoder", model, "--dtype", dtype) as encoder,
        started("generator", model, "--dtype", dtype) as generator,
        Client(encoder=encoder.endpoint, generator=generator.endpoint) as client,
    ):

        def paint(number: int) -> Image.Image:
            scene = scenes[number]
            asked: GenerateKeywords = {"width": scene.width, "height": scene.height, "seed": number}
            data = client.generate(canonical(scene), **asked).images[0].data
            return Image.open(io.BytesIO(data)).convert("RGB")

        alone = [paint(number) for number in range(pictures)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            together = list(pool.map(paint, range(pictures)))
    change = _change(alone, together, scenes)
    say(
        f"{dtype}: {change.differ:.2%} of values differ, {change.beyond_one:.3%} by more than one level, at most by "
        f"{change.greatest}; PSNR {change.median_db:.1f} dB, at worst {change.least_db:.1f} dB; the checker's verdict "
        f"changes for {change.verdicts} of {pictures} pictures"
    )
    return change


def _change(alone: list[Image.Image], together: list[Image.Image], scenes: list[Scene]) -> Change:
    differences = [
        np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)) for a, b in zip(alone, together, strict=True)
    ]
    psnrs = [_psnr(difference) for difference in differences]
    verdicts = sum(
        check(a, scene).all_right != check(b, scene).all_right
        for a, b, scene in zip(alone, together, scenes, strict=True)
    )
    values = np.concatenate([difference.ravel() for difference in differences])
    return Change(
        float((values > 0).mean()),
        float((values > 1).mean()),
        int(values.max()),
        statistics.median(psnrs),
        min(psnrs),
        verdicts,
    )


def _psnr(difference: np.ndarray) -> float:
    error = float(np.square(difference.astype(np.float64)).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


if __name__ == "__main__":
    main()
