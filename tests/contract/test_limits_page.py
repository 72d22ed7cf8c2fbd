"""The page about limits names the numbers that the code enforces."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/reference/limits.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| limit |")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[-1].strip("`"))
def test_a_row_has_the_number_of_the_code(row: tuple[str, ...]) -> None:
    limit, number, _, _, code = row
    value = value_of(code.strip("`"))
    forms = {f"{value:,.0f}", f"{value:g} s", f"{value:,.0f} s", f"{value:g} percent"}
    forms |= {f"{value / 2**20:,.0f} MiB", f"{value / 2**10:,.0f} KiB"}
    assert number in forms, f"{limit}: the code has {value}"


def test_every_table_has_rows() -> None:
    assert len(ROWS) == PAGE.count("` |\n") and len(ROWS) > 30


def value_of(path: str) -> float:
    """Returns a constant, or the default of a field of a dataclass."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[name].default if isinstance(found, type) and name in fields else getattr(found, name)
        assert isinstance(found, int | float), path
        return found
    raise AssertionError(f"no module of {path}")


def test_the_page_is_part_of_the_documentation() -> None:
    navigation = (Path(__file__).parents[2] / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^      - reference/limits\.md$", navigation, re.MULTILINE)
