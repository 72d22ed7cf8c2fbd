"""Names for the pictures of jobs, whose prompt only the pictures themselves may tell."""

from pathlib import Path

import click

from zrelay_client.cli._targets import Targets, chosen_format, targets
from zrelay_client.events import SUFFIX_OF, Image
from zrelay_client.provenance import read_provenance


class JobFiles:
    """`output` is a file, a folder, or None for names of prompt and seed in this one; `several`: of several jobs."""

    def __init__(self, output: str | None, *, force: bool, several: bool = False) -> None:
        self._output, self._force, self._several = output, force, several
        chosen_format(output, None, None)  # a suffix that is none of ours is refused before anything is fetched
        if several and output is not None and not (Path(output).is_dir() or output.endswith("/")):
            raise click.UsageError(
                "--output: the pictures of several jobs need a folder: name one, or fetch one by one"
            )

    def check(self, count: int) -> None:
        """Raises OSError where that many pictures of one job could not be written."""
        self._targets(count, "png", "").check()

    def write(self, job_id: str, images: tuple[Image, ...]) -> list[Path]:
        """Writes the pictures of a job. Raises OSError, and click.UsageError for another format's name."""
        if not images:
            return []
        made, named = images[0].format, chosen_format(self._output, None, None)
        if named is not None and named != made:
            raise click.UsageError(
                f"--output {self._output}: the pictures of job {job_id} are {made} files: name it so"
            )
        return self._targets(len(images), images[0].format, _title(images[0]) or f"job-{job_id}").write(images)

    def _targets(self, count: int, format: str, title: str) -> Targets:
        suffix = SUFFIX_OF.get(format, ".png").removeprefix(".")
        known = "jpeg" if suffix == "jpg" else suffix
        return targets(self._output, known, prompt=title, count=count, force=self._force)


def _title(image: Image) -> str:
    """The prompt as the picture tells it, "" where it does not."""
    said = read_provenance(image.data) or {}
    prompt = said.get("prompt")
    return prompt if isinstance(prompt, str) else ""
