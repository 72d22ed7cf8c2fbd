"""`zrelay generate`: a prompt, or embeddings from a file, to pictures."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zrelay_client.cli._flags import PLACE, endpoint_options
from zrelay_client.cli._generate_flags import (
    BatchFlags,
    FileFlags,
    PictureFlags,
    batch_options,
    file_options,
    picture_options,
)
from zrelay_client.cli._reference_flags import ReferenceFlags, reference_options
from zrelay_client.settings import Settings

if TYPE_CHECKING:
    from zrelay_client.cli._painting import GenerateCommand


@click.command("generate")
@click.argument("prompt", required=False)
@click.option(
    "--prompt-embeds", type=PLACE, metavar="FILE", help="Embeddings written by `zrelay encode`, in place of a prompt."
)
@file_options
@picture_options
@reference_options
@batch_options
@click.option("--timeout", type=float, metavar="SECONDS", help="For a job and all before it. Default: 1800.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout in place of the file names.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no timings.")
@endpoint_options("encoder", "vision", "generator")
def command(
    prompt: str | None,
    prompt_embeds: str | None,
    file: FileFlags,
    picture: PictureFlags,
    reference: ReferenceFlags,
    batch: BatchFlags,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
    encoder: str | None,
    vision: str | None,
    generator: str | None,
    profile: str | None,
) -> int:
    """Generate images from PROMPT (`-` reads it from stdin).

    Options that are not given have the checkpoint's defaults. The image file contains the settings that made it;
    `zrelay info FILE` prints them. Ctrl-C cancels the job; pressed twice it leaves the job running and prints how to
    fetch its images.

    \b
    zrelay generate "a red fox" -o fox.png --seed 7
    zrelay generate "a red fox" -o fox.png --num-images 4     fox-1.png ... fox-4.png
    zrelay generate "a red fox" -o foxes/ --count 1000 --generator box1 --generator box2
    zrelay generate "a red fox" -o foxes/ --seeds 1-500 --priority batch
    zrelay generate "a red fox" --reference style.png --alpha 0.3
    zrelay generate "a red fox in this room" --omni room.png
    zrelay generate "a red fox" --detach                      zrelay jobs fetch ID -o fox.png
    echo "a red fox" | zrelay generate - -o fox.webp --json
    """
    width, height = picture.sides
    flags = {
        "encoder.endpoint": encoder,
        "vision.endpoint": vision,
        "generator.endpoint": generator,
        "generate.width": width,
        "generate.height": height,
        "generate.num_inference_steps": picture.num_inference_steps,
        "generate.guidance_scale": picture.guidance_scale,
        "generate.shift": picture.shift,
        "generate.quality": file.quality,
        "generate.timeout_s": timeout,
    }
    settings = Settings.load(profile, flags)
    if as_json and file.output == "-":
        raise click.UsageError("--json and --output - both want stdout: choose one")
    source = _source(prompt, prompt_embeds, picture.negative_prompt)
    seeds = _seeds(picture, batch)
    order = _order(source, settings, file, picture, reference, batch, jobs=len(seeds or [0]))
    from zrelay_client.cli._console import Console

    console = Console(quiet=quiet)
    needed = [*(["encoder"] if isinstance(source, str) else []), *(["vision"] if reference else []), "generator"]
    settings.require(*needed)
    from zrelay_client.cli._generating import Run

    return Run(order, seeds, batch, settings, console, as_json=as_json)()


def _order(
    source: str | Path,
    settings: Settings,
    file: FileFlags,
    picture: PictureFlags,
    reference: ReferenceFlags,
    batch: BatchFlags,
    *,
    jobs: int,
) -> "GenerateCommand":
    from zrelay_client.cli._painting import GenerateCommand
    from zrelay_client.cli._previews import Previews
    from zrelay_client.cli._targets import chosen_format, targets
    from zrelay_client.image_files import read_image
    from zrelay_client.options import GenerateOptions

    wanted = settings.config.generate
    file_format = chosen_format(file.output, file.format, wanted.format)
    options = GenerateOptions(
        width=wanted.width,
        height=wanted.height,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        shift=wanted.shift,
        seed=picture.seed,
        num_images=picture.num_images,
        image=read_image(picture.image).data if picture.image is not None else None,
        strength=picture.strength,
        skip_layer_guidance_scale=picture.skip_layer_guidance_scale,
        skip_guidance_layers=picture.layers,
        format=file_format,
        quality=wanted.quality,
        keep_prompt=not file.no_prompt_in_file,
        preview_every=file.preview_every if file.preview is not None else 0,
        priority=batch.priority_for(picture.num_images),
    )
    title = source.stem if isinstance(source, Path) else source
    count = picture.num_images * jobs
    return GenerateCommand(
        source=source,
        negative_prompt=picture.negative_prompt,
        options=reference.added_to(options),
        targets=targets(file.output, file_format, prompt=title, count=count, force=file.force),
        previews=Previews(Path(file.preview)) if file.preview is not None else None,
    )


def _seeds(picture: PictureFlags, batch: BatchFlags) -> list[int] | None:
    """The seeds of a batch, None for one job."""
    if batch.count is None and batch.seeds is None:
        if batch.in_flight is not None:
            raise click.UsageError("--in-flight is for many jobs: give --count or --seeds too")
        return None
    from zrelay_client.cli._seeds import seeds_of

    return seeds_of(batch.seeds, batch.count, picture.seed, picture.num_images)


def _source(prompt: str | None, prompt_embeds: str | None, negative_prompt: str | None) -> str | Path:
    """The prompt's text, or the file of embeddings that takes its place."""
    if prompt_embeds is not None:
        if prompt is not None or negative_prompt is not None:
            raise click.UsageError("--prompt-embeds holds prompt and negative prompt: leave them out")
        return Path(prompt_embeds)
    if prompt is None:
        raise click.UsageError("expected a prompt, got none: give PROMPT, `-` for stdin, or --prompt-embeds FILE")
    return read_prompt(prompt)


def read_prompt(prompt: str) -> str:
    """The prompt itself, or stdin's text for `-`, without the newline at its end."""
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise click.UsageError("the prompt on stdin is not UTF-8 text") from error
