"""The accuracy table in markdown."""

from typing import Any

_COLUMNS = ("background", "count", "colour", "shape", "style", "place", "size", "all_right")


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line for each row of eval.json, shares with three digits."""
    head = ["", "prompts", *(name.replace("_", " ") for name in _COLUMNS)]
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for row in rows:
        lines.append(_line([row["name"], str(row["prompts"]), *(share(row[name]) for name in _COLUMNS)]))
    return "\n".join(lines)


def share(value: float) -> str:
    """Three digits after the point, as the card shows them."""
    return f"{value:.3f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
