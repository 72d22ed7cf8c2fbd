"""Writes the model card of the bundle from the records of its stages and its evaluation."""

import json
from pathlib import Path
from string import Template
from typing import Any

from .folder import size_bytes
from .table import markdown, share

_TEMPLATE = Path(__file__).with_name("card.md")


def write_card(checkpoint: Path, stages: dict[str, dict[str, Any]]) -> None:
    """Fills the template of the card and writes it to `checkpoint`/README.md.

    Args:
        checkpoint: Pipeline folder with eval.json.
        stages: Stage name -> the stage's record.
    """
    results = json.loads((checkpoint / "eval.json").read_text(encoding="utf-8"))
    model = next(row for row in results["rows"] if row["name"] == "model")
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        all_right=share(model["all_right"]),
        prompts=model["prompts"],
        forwards=results["defaults"]["num_inference_steps"],
        megabytes=f"{size_bytes(checkpoint) / 1e6:.1f}",
        stages="\n".join(_stage_line(name, record) for name, record in stages.items()),
        table=markdown(results["rows"]),
    )
    (checkpoint / "README.md").write_text(text, encoding="utf-8")


def _stage_line(name: str, record: dict[str, Any]) -> str:
    """Returns the table row of a stage: name, length and duration."""
    counted = [name for name in ("steps", "scenes", "captions") if name in record]
    amount = ", ".join(f"{record[name]} {name}" for name in counted)
    note = f" ({record['note']})" if "note" in record else ""
    return f"| {name}{note} | {amount} | {max(1, round(record['seconds'] / 60))} min |"
