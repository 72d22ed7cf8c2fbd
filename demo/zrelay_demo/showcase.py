"""Write the page that shows what the checkpoint paints, what it gets wrong, and the table; pictures beside it."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from string import Template

from PIL import Image

from . import CHECKPOINT
from .checker import Verdict
from .evaluate import EXAMS, MAIN, EvalSettings, Sitting, sit
from .free_wordings import FOREIGN, FREE
from .sheet import contact_sheet
from .table import markdown

_TEMPLATE = Path(__file__).with_name("showcase.md")
_SHOWN, _WRONG, _OF_EACH = 48, 24, 12


def showcase(checkpoint: Path, docs: Path, settings: EvalSettings) -> None:
    """Generates images from the prompts of the evaluation, and writes the page and its images below `docs`.

    Args:
        checkpoint: The demo checkpoint, with its eval.json.
        docs: Folder with `explanation/` and `images/`.
        settings: How many prompts to use, and how to generate.
    """
    images = docs / "images"
    main = sit(checkpoint, MAIN, settings)
    few = replace(settings, prompts=_OF_EACH)
    shown = [exam for exam in EXAMS if exam != MAIN and exam.guidance_scale == 0 and exam.wording is not FOREIGN]
    others = [sit(checkpoint, exam, few) for exam in shown]
    results = json.loads((checkpoint / "eval.json").read_text(encoding="utf-8"))
    wrong = [index for index, verdict in enumerate(main.verdicts) if not verdict.all_right][:_WRONG]
    contact_sheet(main.painted[:_SHOWN], main.verdicts[:_SHOWN]).save(images / "demo_sheet.png", optimize=True)
    contact_sheet([main.painted[i] for i in wrong], [main.verdicts[i] for i in wrong]).save(
        images / "demo_wrong.png", optimize=True
    )
    _frames_sheet(others).save(images / "demo_frames.png", optimize=True)
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        table=markdown(results["rows"]),
        wrong="\n".join(f"{n}. {main.prompts[i]}: {_what(main.verdicts[i])}" for n, i in enumerate(wrong, 1)),
        looked_at=wrong[-1] + 1 if len(wrong) == _WRONG else len(main.prompts),
        wrong_count=len(wrong),
        free=_told(next(sitting for sitting in others if sitting.exam.wording is FREE)),
    )
    (docs / "explanation/demo-checkpoint.md").write_text(page, encoding="utf-8")


def _what(verdict: Verdict) -> str:
    return ", ".join(name for name, right in vars(verdict).items() if not right)


def _told(sitting: Sitting) -> str:
    pairs = zip(sitting.prompts, sitting.verdicts, strict=True)
    return "\n".join(f"- {prompt}" + ("" if v.all_right else f" ({_what(v)} wrong)") for prompt, v in pairs)


def _frames_sheet(sittings: list[Sitting]) -> Image.Image:
    """One row of pictures for each exam, at their own proportions."""
    rows = [[picture.resize(_thumbnail(picture)) for picture in sitting.painted] for sitting in sittings]
    gap = 6
    width = max(sum(picture.width + gap for picture in row) for row in rows) + gap
    height = sum(max(picture.height for picture in row) + gap for row in rows) + gap
    sheet = Image.new("RGB", (width, height), "white")
    top = gap
    for row in rows:
        left = gap
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + gap
        top += max(picture.height for picture in row) + gap
    return sheet.quantize(128)


def _thumbnail(picture: Image.Image) -> tuple[int, int]:
    return round(picture.width * 0.75), round(picture.height * 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder to show; default: the bundle")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page and its pictures go")
    parser.add_argument("--prompts", type=int, default=300, help="prompts among which wrong ones are looked for")
    options = parser.parse_args()
    showcase(options.checkpoint, options.docs, EvalSettings(prompts=options.prompts))


if __name__ == "__main__":
    main()
