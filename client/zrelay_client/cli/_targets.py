"""Where pictures go: names, formats, and what may not be overwritten, settled before anything is computed."""

import errno
import os
import re
import sys
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click

from zrelay_client.events import FORMAT_OF, SUFFIX_OF, Image, ImageFormat
from zrelay_shared import atomic

FORMATS = tuple(SUFFIX_OF)
_SLUG_CHARS = 40
_MOST_FILES = 10_000
"""Of one command: more is a slip of the finger."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The files of one generation.

    `file` is what the caller named, None for a name made of prompt and seed in `folder`; `stdout` for `-`.
    """

    folder: Path
    file: Path | None
    slug: str
    suffix: str
    count: int
    force: bool
    stdout: bool = False

    def check(self) -> None:
        """Raises OSError where a picture could not be written, before it is painted."""
        if self.stdout:
            return
        check_folder(self.folder)
        if self.file is not None:
            for path in self._named(self.file):
                check_file(path, force=self.force)

    def write(self, images: tuple[Image, ...]) -> list[Path]:
        """Writes the pictures, each whole or not at all; where they are (none for stdout). Raises OSError."""
        if self.stdout:
            try:
                sys.stdout.buffer.write(images[0].data)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                raise OSError(errno.EIO, "whoever read it has gone before the picture was whole", "stdout") from None
            return []
        return [self.write_one(index, image) for index, image in enumerate(images)]

    def write_one(self, index: int, image: Image) -> Path:
        """Writes one of the pictures, whole or not at all, and says where. Raises OSError."""
        if self.file is not None:
            path = self.file if self.count == 1 else self._numbered(self.file, index)
        else:
            path = self.folder / f"{self.slug}-{image.seed}{self.suffix}"
        place = path if self.force and self.file is not None else free_name(path)
        atomic.write_bytes(place, image.data)
        return place

    def _named(self, file: Path) -> list[Path]:
        return [file] if self.count == 1 else [self._numbered(file, index) for index in range(self.count)]

    def _numbered(self, file: Path, index: int) -> Path:
        return file.with_name(f"{file.stem}-{index + 1}{file.suffix}")


def targets(output: str | None, format: str | None, *, prompt: str, count: int, force: bool) -> Targets:
    """What `--output` and `--format` mean. Raises click.UsageError where they contradict."""
    if count > _MOST_FILES:
        raise click.UsageError(f"expected at most {_MOST_FILES} pictures of one command, got {count}")
    if output == "-":
        if count > 1:
            raise click.UsageError(f"--output - takes one picture, asked are {count}")
        if sys.stdout.isatty():
            raise click.UsageError("--output - would write a picture to the terminal: redirect it, or name a file")
    named = None if output is None or output == "-" else Path(output)
    if named is not None and output is not None and (named.is_dir() or output.endswith(("/", os.sep))):
        folder, named = named, None
    else:
        folder = named.parent if named is not None else Path()
    suffix = SUFFIX_OF[format or "png"]
    return Targets(folder, named, _slug(prompt), suffix, count, force, stdout=output == "-")


def chosen_format(output: str | None, flag: str | None, configured: str | None) -> ImageFormat | None:
    """The format: by flag, by the output's suffix, or as configured; None leaves it to the generator (PNG)."""
    is_file = output is not None and output != "-" and not Path(output).is_dir()
    suffix = Path(output).suffix.lower() if is_file and output is not None else ""
    said = FORMAT_OF.get(suffix)
    if flag is not None:
        if said is not None and said != flag:
            raise click.UsageError(f"--output {output} is a {said} file, and --format says {flag}: change one of them")
        return cast(ImageFormat, flag)
    if said is None and suffix:
        raise click.UsageError(
            f"--output {output}: expected {', '.join(FORMAT_OF)}, got {suffix}: name one of them, or pass --format"
        )
    return cast("ImageFormat | None", said or configured)


def check_folder(folder: Path) -> None:
    """Raises OSError where files cannot be made in a folder."""
    if not folder.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "there is no such folder: make it first, or write elsewhere", str(folder)
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write there: {error.strerror}", str(folder)) from error


def check_file(path: Path, *, force: bool) -> None:
    """Raises OSError where a file may not take this name."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder: name a file in it", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no ordinary file: name another; `-o -` of `generate` is stdout", str(path))
    if path.exists() and not force:
        raise FileExistsError(errno.EEXIST, "exists already: pass --force to replace it, or name another", str(path))


def free_name(path: Path) -> Path:
    """`path`, or the first of `-2`, `-3`, ... that is not taken."""
    number, place = 2, path
    while place.exists():
        place = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return place


def _slug(prompt: str) -> str:
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words[:_SLUG_CHARS].strip("-") or "zrelay"
