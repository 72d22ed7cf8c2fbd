"""From the options of `zrelay generate`, or a line of its file of prompts, to jobs."""

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zrelay_client._vision.references import check_reference_files
from zrelay_client.cli._files import MAX_FILES, Previews, Targets, chosen_format, targets
from zrelay_client.cli._options import Flags, values_of
from zrelay_client.image_files import check_image, read_image
from zrelay_client.options import EncodeOptions, GenerateOptions
from zrelay_shared.config import Config
from zrelay_shared.limits import MAX_SEED

if TYPE_CHECKING:
    from zrelay_client.embeds import Embeds


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateArguments:
    """Arguments and options of the command that are not settings."""

    prompt: str | None
    prompt_embeds: str | None = None
    negative_prompt: str | None = None
    size: str | None = None
    image: str | None = None
    reference: str | None = None
    omni: tuple[str, ...] = ()
    output: str | None = None
    force: bool = False
    preview: str | None = None
    count: int | None = None
    seeds: str | None = None
    prompts: str | None = None
    in_flight: int | None = None
    detach: bool = False
    as_json: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class ImageJob:
    """One job of `zrelay generate`: what is generated, and its files.

    Attributes:
        source: The prompt, or a file of embeddings.
        negative_prompt: The negative prompt; None for none.
        encoding: How the prompt is encoded.
        options: How the image is generated. Their `image` is empty until `read_options` reads it.
        targets: Where images are written.
        image: The file of the image to start from; None for none.
        previews: Where previews are written; None for none.
    """

    source: str | Path
    negative_prompt: str | None
    encoding: EncodeOptions
    options: GenerateOptions
    targets: Targets
    image: str | None = None
    previews: Previews | None = None

    def check(self) -> None:
        """Checks the input files, and that images and previews can be written. Creates nothing.

        Raises:
            InvalidArgument, OSError: As `check_inputs`, or a file cannot be written.
        """
        self.check_inputs()
        self.targets.check()
        if self.previews is not None:
            self.previews.check()

    def check_inputs(self) -> None:
        """Checks the files of images, of which it reads the first bytes.

        Raises:
            InvalidArgument: A file is not an image.
            OSError: A file cannot be read.
        """
        if self.image is not None:
            check_image(self.image)
        check_reference_files(self.options)

    def prompt(self) -> "str | Embeds":
        """Returns the prompt, or the embeddings of the file. Raises as Embeds.load."""
        if isinstance(self.source, str):
            return self.source
        from zrelay_client.embeds import Embeds

        return Embeds.load(self.source)

    def read_options(self) -> GenerateOptions:
        """Returns the options with the image to start from. Raises OSError, InvalidArgument."""
        return self.options if self.image is None else self.options.replaced(image=read_image(self.image).data)


def image_job(arguments: GenerateArguments, settings: Config, source: str | Path, *, jobs: int) -> ImageJob:
    """Makes the job of the arguments and the configuration.

    Args:
        arguments: Arguments and options.
        settings: The configuration, flags included.
        source: The prompt, or a file of embeddings.
        jobs: Number of jobs that share it, for the names of files.

    Raises:
        click.UsageError: Options contradict each other.
        InvalidArgument: A value is not valid.
    """
    generate = settings.generate
    by_flag = generate.format if settings.origins.get("generate.format") == "flag" else None
    file_format = chosen_format(arguments.output, by_flag, generate.format)
    num_images = 1 if generate.num_images is None else generate.num_images
    one_image = num_images == 1 and arguments.count is None and arguments.seeds is None and arguments.prompts is None
    options: dict[str, Any] = {
        **values_of(generate, without=("timeout_s", "preview_every", "preview_max_side", "labels")),
        "priority": generate.priority or ("interactive" if one_image else "normal"),
    }
    if arguments.image is None:
        options.pop("strength", None)  # a default of the configuration, for images to start from
    else:
        options["image"] = b""
    if file_format is not None:
        options["format"] = file_format
    if file_format in (None, "png") and settings.origins.get("generate.quality") != "flag":
        options.pop("quality", None)  # a default of the configuration, for jpeg and webp files
    if generate.labels is not None:
        options["labels"] = dict(label.split("=", 1) for label in generate.labels)
    if arguments.preview is not None:
        options["preview_every"] = 1 if generate.preview_every is None else generate.preview_every
        if generate.preview_max_side is not None:
            options["preview_max_side"] = generate.preview_max_side
    if arguments.reference is not None:
        options |= {"reference": arguments.reference, "conditioning": values_of(settings.condition)}
    if arguments.omni:
        options["omni"] = arguments.omni
    title = source.stem if isinstance(source, Path) else source
    count = max(1, num_images) * jobs
    return ImageJob(
        source=source,
        negative_prompt=arguments.negative_prompt,
        encoding=EncodeOptions(**({} if isinstance(source, Path) else values_of(settings.encode))),
        options=GenerateOptions(**options),
        targets=targets(arguments.output, file_format, prompt=title, count=count, force=arguments.force),
        image=arguments.image,
        previews=Previews(Path(arguments.preview)) if arguments.preview is not None else None,
    )


def uses_vision(arguments: GenerateArguments) -> bool:
    """Returns whether the vision service is needed."""
    return arguments.reference is not None or bool(arguments.omni)


def size_flags(text: str) -> Flags:
    """Returns width and height of `WIDTHxHEIGHT`. Raises click.UsageError."""
    match = re.fullmatch(r"([0-9]{1,9})[xX]([0-9]{1,9})", text)
    if match is None:
        raise click.UsageError(f"--size: expected WIDTHxHEIGHT such as 1024x768, got {text!r}")
    return {"generate.width": int(match[1]), "generate.height": int(match[2])}


def seeds_of(seeds: str | None, count: int | None, first: int | None, images: int) -> list[int]:
    """Returns the seed of each job of `--seeds 7,9,100-199` or `--count N`.

    Args:
        seeds: The value of --seeds.
        count: The value of --count.
        first: The first seed of --count, random if None.
        images: Images of each job. As image i has seed + i, seeds are that far apart, so that no image comes twice.

    Raises:
        click.UsageError: The seeds are not understood, or too many.
    """
    if seeds is None:
        start = secrets.randbelow(1 << 32) if first is None else first
        jobs = count or 1
        most = MAX_SEED + 1 - jobs * max(1, images)
        if start > most:
            raise click.UsageError(
                f"--seed: expected at most {most} for {jobs * max(1, images)} images, each with a seed of its own, got "
                f"{start}"
            )
        return [start + index * max(1, images) for index in range(min(jobs, MAX_FILES + 1))]
    if count is not None or first is not None:
        raise click.UsageError("--seeds sets the seeds and their number: leave out --seed and --count")
    found: list[int] = []
    for part in seeds.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,20})(?:\s*-\s*([0-9]{1,20}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high:
            raise click.UsageError(f"--seeds: expected numbers and ranges such as 7,9,100-199, got {part.strip()!r}")
        if high > MAX_SEED + 1 - max(1, images):
            each = f" with {images} images of each job, of which image i has seed + i" if images > 1 else ""
            raise click.UsageError(f"--seeds: expected at most {MAX_SEED + 1 - max(1, images)}{each}, got {high}")
        if high - low + len(found) >= MAX_FILES:
            raise click.UsageError(f"--seeds: expected at most {MAX_FILES} seeds, got more")
        found += range(low, high + 1)
    return found


def seeds_of_jobs(arguments: GenerateArguments, settings: Config) -> list[int] | None:
    """Returns the seeds of several jobs, None for one job."""
    if arguments.count is None and arguments.seeds is None:
        return None
    first = settings.generate.seed
    if arguments.seeds is not None and settings.origins.get("generate.seed") != "flag":
        first = None  # a seed of the configuration is a default, which --seeds replaces
    images = 1 if settings.generate.num_images is None else settings.generate.num_images
    return seeds_of(arguments.seeds, arguments.count, first, images)
