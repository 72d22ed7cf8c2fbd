"""Image files: their names, formats and folders, and what must not be overwritten. Checked before any work begins."""

import errno
import itertools
import os
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from zrelay_client.events import FORMAT_OF, SUFFIX_OF, ImageFormat
from zrelay_shared import atomic

if TYPE_CHECKING:
    from zrelay_client.events import Image, Preview

_SLUG_CHARS = 40
_PREVIEW_SUFFIXES = (".jpg", ".jpeg")
MAX_FILES = 10_000
"""Images of one command; more are probably a mistake."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The files of the images of one command.

    Attributes:
        folder: Folder of the files.
        file: The file that the user named; None for names made of prompt and seed.
        slug: The prompt as the beginning of a file name.
        suffix: Suffix of the files, with the dot.
        count: Number of images.
        force: Whether files are replaced.
        stdout: Whether the image is written to standard output.
        taken: Files of this command, which `force` does not replace. Those that are written are added.
    """

    folder: Path
    file: Path | None
    slug: str
    suffix: str
    count: int
    force: bool
    stdout: bool = False
    taken: set[Path] = field(default_factory=set, compare=False)

    def check(self, *, again: bool = False) -> None:
        """Checks that the files can be written. Creates nothing.

        Args:
            again: Whether the images may be those of an earlier run: regular files may exist, and the folder of a
                named file is created.

        Raises:
            OSError: A file exists already or cannot be written.
        """
        if self.stdout:
            return
        if self.file is None or again:
            check_new_folder(self.folder)
        else:
            check_folder(self.folder)
        for path in self.paths():
            check_file(path, force=self.force or again)

    def paths(self) -> list[Path]:
        """Returns the files, where the user named them; else none are known yet."""
        return [] if self.file is None else [self._named(self.file, index) for index in range(self.count)]

    def write(self, images: "tuple[Image, ...]") -> list[Path]:
        """Writes the images of a job.

        Returns:
            The paths; none for standard output.

        Raises:
            OSError: A file cannot be written.
        """
        if self.stdout:
            try:
                sys.stdout.buffer.write(images[0].data)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                raise OSError(errno.EIO, "the reader closed the pipe before the image was complete", "stdout") from None
            return []
        return [self.write_one(index, image) for index, image in enumerate(images)]

    def write_one(self, index: int, image: "Image", *, again: bool = False) -> Path:
        """Writes one image, complete or not at all, and returns its path. Creates the folder.

        Without `force` an existing file is kept: the image gets a name with a number.

        Args:
            index: Position of the image among all of the command.
            image: The image.
            again: Whether the image may be there from an earlier run: a file with the same bytes is kept as this image.
                A named file with other bytes is an error.

        Raises:
            FileExistsError: With `again`, the named file holds something else.
            OSError: The file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.slug}-{image.seed}{self.suffix}"
        if self.file is not None:
            path = self._named(self.file, index)
        for place in _names(path):
            free = not os.path.lexists(place)
            if free or (self.force and place not in self.taken):
                break
            if again and place.is_file() and place.read_bytes() == image.data:
                break
            if again and self.file is not None:
                check_file(place, force=False)
        if not place.is_file() or place.read_bytes() != image.data:
            atomic.write_bytes(place, image.data)
        self.taken.add(place)
        return place

    def _named(self, file: Path, index: int) -> Path:
        return file if self.count == 1 else file.with_name(f"{file.stem}-{index + 1}{file.suffix}")


def targets(output: str | None, format: str | None, *, prompt: str, count: int, force: bool) -> Targets:
    """Returns the files that `--output` and `--format` mean.

    Raises:
        click.UsageError: The options contradict each other.
    """
    if count > MAX_FILES:
        raise click.UsageError(f"expected at most {MAX_FILES} images of one command, got {count}")
    if output == "-":
        if count > 1:
            raise click.UsageError(f"--output -: expected one image, got {count}: name a file or a folder")
        if sys.stdout.isatty():
            raise click.UsageError("--output -: expected a file or a pipe, got a terminal: redirect it, or name a file")
    folder, file = Path(), None
    if output is not None and output != "-":
        if is_folder(output):
            folder = Path(output)
        else:
            file = Path(output)
            folder = file.parent
    return Targets(folder, file, _slug(prompt), SUFFIX_OF[format or "png"], count, force, stdout=output == "-")


def is_folder(output: str) -> bool:
    """Returns whether an output is a folder: an existing one, or one to create, whose name ends with a slash."""
    return output.endswith(("/", os.sep)) or Path(output).is_dir()


def chosen_format(output: str | None, flag: str | None, configured: str | None) -> ImageFormat | None:
    """Returns the format of the files: by flag, by the suffix of the output, or as configured.

    Returns:
        None leaves it to the generator (PNG).

    Raises:
        click.UsageError: The suffix is not known, or contradicts the flag.
    """
    suffix = "" if output is None or output == "-" or is_folder(output) else Path(output).suffix.lower()
    by_suffix = FORMAT_OF.get(suffix)
    if flag is not None:
        if by_suffix is not None and by_suffix != flag:
            raise click.UsageError(
                f"--output {output} is the name of a {by_suffix} file, but --format is {flag}: change one of them"
            )
        return cast(ImageFormat, flag)
    if by_suffix is None and suffix:
        raise click.UsageError(
            f"--output {output}: expected the suffix {', '.join(FORMAT_OF)}, got {suffix}: change it, or pass --format"
        )
    return cast("ImageFormat | None", by_suffix or configured)


def check_folder(folder: Path) -> None:
    """Checks that files can be created in a folder.

    Raises:
        OSError: They cannot.
    """
    if not folder.is_dir():
        existing = _nearest(folder)
        message = "this folder does not exist: create it first, or write elsewhere"
        if not existing.is_dir():
            file = "this" if existing == folder else str(existing)
            message = f"expected a folder, but {file} is {_kind(existing)}: write elsewhere"
        raise NotADirectoryError(errno.ENOTDIR, message, str(folder))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"no file can be written there: {error.strerror}", str(folder)) from error


def check_new_folder(folder: Path) -> None:
    """Checks that files can be created in a folder that exists or can be created. Creates nothing.

    Raises:
        OSError: They cannot.
    """
    existing = _nearest(folder)
    if not existing.is_dir():
        message = f"the folder cannot be created: {existing} is {_kind(existing)}"
        raise NotADirectoryError(errno.ENOTDIR, message, str(folder))
    if existing == folder:
        check_folder(folder)
        return
    try:
        check_folder(existing)
    except OSError as error:
        message = f"the folder cannot be created in {existing}: {error.strerror}"
        raise OSError(error.errno, message, str(folder)) from error


def _nearest(folder: Path) -> Path:
    """Returns the folder, or the nearest of its parents that exists."""
    return next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path())


def _kind(path: Path) -> str:
    """Returns what stands where a folder is expected."""
    if path.is_symlink() and not path.exists():
        return "a symbolic link to nothing"
    return "a file" if path.is_file() else "not a folder"


def check_file(path: Path, *, force: bool) -> None:
    """Checks that a file may be written. Of a symbolic link, the target is written.

    Raises:
        OSError: The name is taken, or is not the name of a file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        message = "not a regular file: name another; `generate -o -` writes to standard output"
        raise OSError(errno.EINVAL, message, str(path))
    target = atomic.target_of(path)
    if target.exists() and not force:
        message = "the file exists already: pass --force to replace it, or name another"
        raise FileExistsError(errno.EEXIST, message, str(path))
    if target != path:
        try:
            check_folder(target.parent)
        except OSError as error:
            raise OSError(error.errno, f"a symbolic link to {target}: {error.strerror}", str(path)) from error


def new_file(output: str, *, force: bool) -> Path:
    """Returns the path of an output that must be a file, after checking that it can be written.

    Raises:
        OSError: It cannot be written, or names a folder.
    """
    path = Path(output)
    if is_folder(output):
        raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder: name a file in it", output)
    check_folder(path.parent)
    check_file(path, force=force)
    return path


def free_name(path: Path) -> Path:
    """Returns the path, or the first of `-2`, `-3`, ... that does not exist."""
    return next(place for place in _names(path) if not os.path.lexists(place))


def _names(path: Path) -> Iterator[Path]:
    """Yields the path, and then the same name with `-2`, `-3`, ... without an end."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


class Previews:
    """Writes previews while an image is generated.

    `place` is a JPEG file that each preview replaces, or a folder that keeps all of them.
    """

    def __init__(self, place: Path) -> None:
        self._file = place if place.suffix.lower() in _PREVIEW_SUFFIXES else None
        self._folder = place.parent if self._file is not None else place

    def check(self) -> None:
        """Checks that previews can be written. Creates nothing.

        Raises:
            OSError: They cannot.
        """
        if self._file is None:
            check_new_folder(self._folder)
        else:
            check_folder(self._folder)
            check_file(self._file, force=True)

    def write(self, preview: "Preview", *, job: int | None = None) -> None:
        """Writes a preview. `job` is the index of the job among several. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        prefix = "" if job is None else f"job-{job + 1}-"
        name = self._folder / f"{prefix}image-{preview.image_index + 1}-step-{preview.step:03}.jpg"
        atomic.write_bytes(self._file or name, preview.jpeg)


class JobFiles:
    """The files of jobs that a generator keeps; their prompts are known only from the images.

    Args:
        output: A file, a folder, or None for names made of prompt and seed in the current folder.
        force: Whether files are replaced.
        several: Whether there are several jobs.

    Raises:
        click.UsageError: The suffix is not known, or several jobs have one file.
    """

    def __init__(self, output: str | None, *, force: bool, several: bool = False) -> None:
        self._output, self._force = output, force
        self._taken: set[Path] = set()
        chosen_format(output, None, None)
        if several and output is not None and not is_folder(output):
            raise click.UsageError(
                f"--output {output}: expected a folder for the images of several jobs, got a file: end its name with /"
            )

    def check(self, count: int) -> None:
        """Checks that the images of a job can be written. Raises OSError."""
        self._targets(count, "png", "").check()

    def write(self, job_id: str, images: "tuple[Image, ...]") -> list[Path]:
        """Writes the images of a job, and returns their paths. Raises OSError, click.UsageError."""
        if not images:
            return []
        format, named = images[0].format, chosen_format(self._output, None, None)
        if named is not None and named != format:
            raise click.UsageError(
                f"--output {self._output}: expected the name of a {format} file, as the images of job {job_id} are, "
                f"got that of a {named} file: change the suffix"
            )
        return self._targets(len(images), format, _prompt_of(images[0]) or f"job-{job_id}").write(images)

    def _targets(self, count: int, format: str, title: str) -> Targets:
        known = format if format in SUFFIX_OF else "png"
        found = targets(self._output, known, prompt=title, count=count, force=self._force)
        return replace(found, taken=self._taken)


def file_values(image: "Image", path: Path | None) -> dict[str, Any]:
    """Returns an image as --json prints it: everything but its bytes. `path` is None for standard output."""
    values = asdict(replace(image, data=b""))
    del values["data"], values["image_index"]
    return {"path": "-" if path is None else str(path), **values}


def _prompt_of(image: "Image") -> str:
    """Returns the prompt that an image file holds, "" for none."""
    from zrelay_client.provenance import read_provenance

    prompt = (read_provenance(image.data) or {}).get("prompt")
    return prompt if isinstance(prompt, str) else ""


def _slug(prompt: str) -> str:
    # Only the beginning: normalising many combining characters in a row takes quadratic time.
    ascii_text = unicodedata.normalize("NFKD", prompt[: 20 * _SLUG_CHARS]).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")
    return words[:_SLUG_CHARS].strip("-") or "zrelay"
