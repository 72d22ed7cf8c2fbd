"""Writes the page about the demo checkpoint: generated images, what it gets wrong, and the accuracy table."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from string import Template

from PIL import Image

from . import CHECKPOINT
from .checker import CheckResult
from .evaluate import MAIN, PROMPT_SETS, EvalSettings, PromptSetResult, run_prompt_set
from .free_wordings import FOREIGN, FREE
from .sheet import contact_sheet
from .table import markdown

_TEMPLATE = Path(__file__).with_name("showcase.md")
_SHOWN_COUNT, _WRONG_COUNT, _COUNT_PER_SET = 48, 24, 12


def showcase(checkpoint: Path, docs: Path, settings: EvalSettings) -> None:
    """Generates images from the prompts of the evaluation, and writes the page and its images below `docs`.

    Args:
        checkpoint: The demo checkpoint, with its eval.json.
        docs: Folder with `explanation/` and `images/`.
        settings: How many prompts to use, and how to generate.
    """
    images = docs / "images"
    main = run_prompt_set(checkpoint, MAIN, settings)
    few = replace(settings, prompts=_COUNT_PER_SET)
    shown = [
        prompt_set
        for prompt_set in PROMPT_SETS
        if prompt_set != MAIN and prompt_set.guidance_scale == 0 and prompt_set.wording is not FOREIGN
    ]
    others = [run_prompt_set(checkpoint, prompt_set, few) for prompt_set in shown]
    results = json.loads((checkpoint / "eval.json").read_text(encoding="utf-8"))
    wrong = [index for index, result in enumerate(main.checks) if not result.all_right][:_WRONG_COUNT]
    contact_sheet(main.images[:_SHOWN_COUNT], main.checks[:_SHOWN_COUNT]).save(images / "demo_sheet.png", optimize=True)
    contact_sheet([main.images[i] for i in wrong], [main.checks[i] for i in wrong]).save(
        images / "demo_wrong.png", optimize=True
    )
    _resolution_sheet(others).save(images / "demo_frames.png", optimize=True)
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        table=markdown(results["rows"]),
        wrong="\n".join(f"{n}. {main.prompts[i]}: {_wrong_attributes(main.checks[i])}" for n, i in enumerate(wrong, 1)),
        looked_at=wrong[-1] + 1 if len(wrong) == _WRONG_COUNT else len(main.prompts),
        wrong_count=len(wrong),
        free=_prompt_list(next(set_result for set_result in others if set_result.prompt_set.wording is FREE)),
    )
    (docs / "explanation/demo-checkpoint.md").write_text(page, encoding="utf-8")


def _wrong_attributes(result: CheckResult) -> str:
    """Returns the names of the attributes that are wrong, separated by commas."""
    return ", ".join(name for name, right in vars(result).items() if not right)


def _prompt_list(set_result: PromptSetResult) -> str:
    """Returns a Markdown list of the prompts, with the wrong attributes of each."""
    pairs = zip(set_result.prompts, set_result.checks, strict=True)
    return "\n".join(f"- {prompt}" + ("" if v.all_right else f" ({_wrong_attributes(v)} wrong)") for prompt, v in pairs)


def _resolution_sheet(set_results: list[PromptSetResult]) -> Image.Image:
    """Returns a contact sheet with one row of images per prompt set."""
    rows = [[picture.resize(_thumbnail(picture)) for picture in set_result.images] for set_result in set_results]
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
    """Returns the width and height of an image on the sheet."""
    return round(picture.width * 0.75), round(picture.height * 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help="pipeline folder to show; default: the bundled one"
    )
    parser.add_argument(
        "--docs", type=Path, default=Path("docs"), help="folder for the page and its images; default: docs"
    )
    parser.add_argument(
        "--prompts", type=int, default=300, help="prompts to generate when looking for wrong images; default: 300"
    )
    options = parser.parse_args()
    showcase(options.checkpoint, options.docs, EvalSettings(prompts=options.prompts))


if __name__ == "__main__":
    main()
