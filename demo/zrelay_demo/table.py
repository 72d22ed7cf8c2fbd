"""Formats the accuracy table in Markdown."""

from typing import Any

_COLUMNS = ("background", "count", "colour", "shape", "style", "place", "size", "all_right")


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the table with one line per row of eval.json."""
    head = ["", "prompts", *(name.replace("_", " ") for name in _COLUMNS)]
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for row in rows:
        lines.append(_line([row["name"], str(row["prompts"]), *(share(row[name]) for name in _COLUMNS)]))
    return "\n".join(lines)


def share(value: float) -> str:
    """Returns a share with three decimals."""
    return f"{value:.3f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
