"""The examples in docs/how-to/test-with-the-fake.md run as they are written."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.contract.structure import ROOT
from zrelay_client.testing import FakeServices

PAGE = ROOT / "docs/how-to/test-with-the-fake.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(example: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, str(PAGE), "exec"), names)
    return names


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(example: str) -> None:
    run(example)


def test_the_fixture_of_the_page_serves() -> None:
    (example,) = [each for each in EXAMPLES if "pytest.fixture" in each]
    fixture = run(example)["fake"]

    @contextmanager
    def served() -> Iterator[FakeServices]:
        yield from fixture.__wrapped__()

    with served() as fake, fake.client() as client:
        assert client.generate("a red fox").images


def test_the_page_has_its_examples() -> None:
    assert len(EXAMPLES) == 6
