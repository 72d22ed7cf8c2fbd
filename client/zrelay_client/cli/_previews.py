"""Previews as files, while a picture is being painted."""

from pathlib import Path

from zrelay_client.cli._targets import check_folder
from zrelay_client.events import Preview
from zrelay_shared import atomic

_SUFFIXES = (".jpg", ".jpeg")


class Previews:
    """`place` is a JPEG file that is replaced by each preview, or a folder that keeps them all."""

    def __init__(self, place: Path) -> None:
        self._file = place if place.suffix.lower() in _SUFFIXES else None
        self._folder = place.parent if self._file is not None else place
        self.written = 0

    def check(self) -> None:
        """Makes the folder where it is ours to make. Raises OSError where previews could not be written."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
        check_folder(self._folder)

    def write(self, preview: Preview, *, job: int | None = None) -> None:
        """Writes one; `job` counts the jobs of a batch from 0. Raises OSError."""
        whose = "" if job is None else f"job-{job + 1}-"
        name = self._folder / f"{whose}image-{preview.image_index + 1}-step-{preview.step:03}.jpg"
        atomic.write_bytes(self._file or name, preview.jpeg)
        self.written += 1
