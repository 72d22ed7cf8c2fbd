"""The files that GitHub reads follow its schemas."""

import subprocess
from pathlib import Path

import pytest

from tests.helpers.tools import find_tool

GITHUB = Path(__file__).parents[2] / ".github"


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("vendor.github-workflows", "workflows/*.yml"),
        ("vendor.github-issue-forms", "ISSUE_TEMPLATE/*.yml"),
        ("vendor.dependabot", "dependabot.yml"),
    ],
    ids=["workflows", "issue forms", "dependabot"],
)
def test_files_for_github_are_valid(schema: str, pattern: str) -> None:
    files = sorted(map(str, GITHUB.glob(pattern)))
    assert files
    command = [find_tool("check-jsonschema", "pip install check-jsonschema"), "--builtin-schema", schema, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
