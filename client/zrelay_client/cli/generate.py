"""`zrelay generate`: a prompt, or embeddings from a file, to pictures."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click

from zrelay_client import _settings
from zrelay_client.cli._flags import PLACE, endpoint_options
from zrelay_client.cli._targets import FORMATS

_NUMBER = click.INT


@click.command("generate")
@click.argument("prompt", required=False)
@click.option(
    "-o",
    "--output",
    type=PLACE,
    metavar="FILE",
    help="File or folder; `-` is stdout. Default: a name from prompt and seed.",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--negative-prompt", metavar="TEXT", help="What guidance leads away from. Default: the empty prompt.")
@click.option("--seed", type=_NUMBER, help="Image i gets seed + i. Default: the generator picks one and says which.")
@click.option("--width", type=_NUMBER, help="Pixels. Default: the checkpoint's.")
@click.option("--height", type=_NUMBER, help="Pixels. Default: the checkpoint's.")
@click.option("--size", metavar="WxH", help="Width and height at once.")
@click.option("--num-inference-steps", type=_NUMBER, help="Forwards of the transformer. Default: the checkpoint's.")
@click.option("--num-images", type=_NUMBER, default=1, help="Pictures of one prompt; files get -1, -2, ... Default: 1.")
@click.option("--guidance-scale", type=float, help="Classifier-free guidance; 0 is none. Default: the checkpoint's.")
@click.option("--shift", type=float, help="Shift of the schedule. Default: the checkpoint's.")
@click.option("--format", type=click.Choice(FORMATS), help="Default: by the file's suffix, else png.")
@click.option("--quality", type=_NUMBER, help="1 to 100, for jpeg and webp.")
@click.option(
    "--prompt-embeds", type=PLACE, metavar="FILE", help="Embeddings written by `zrelay encode`, in place of a prompt."
)
@click.option(
    "--preview",
    type=PLACE,
    metavar="PLACE",
    help="Write previews: a .jpg that is replaced, or a folder that keeps all.",
)
@click.option("--preview-every", type=_NUMBER, default=1, help="Steps from preview to preview. Default: 1.")
@click.option("--no-prompt-in-file", is_flag=True, help="Leave the prompt out of the picture's metadata.")
@click.option("--timeout", type=float, metavar="SECONDS", help="For everything together. Default: 1800.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout in place of the file names.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no timings.")
@endpoint_options("encoder", "vision", "generator")
def command(
    prompt: str | None,
    output: str | None,
    force: bool,
    negative_prompt: str | None,
    seed: int | None,
    width: int | None,
    height: int | None,
    size: str | None,
    num_inference_steps: int | None,
    num_images: int,
    guidance_scale: float | None,
    shift: float | None,
    format: str | None,
    quality: int | None,
    prompt_embeds: str | None,
    preview: str | None,
    preview_every: int,
    no_prompt_in_file: bool,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
    encoder: str | None,
    vision: str | None,
    generator: str | None,
    profile: str | None,
) -> None:
    """Paint PROMPT (`-` reads it from stdin).

    What is not asked for is left to the generator's checkpoint. The picture holds its own recipe; `zrelay info FILE`
    shows it. Ctrl-C stops the generator too.

    \b
    zrelay generate "a red fox" -o fox.png --seed 7
    zrelay generate "a red fox" -o fox.png --num-images 4     fox-1.png ... fox-4.png
    echo "a red fox" | zrelay generate - -o fox.webp --json
    """
    if size is not None:
        if width is not None or height is not None:
            raise click.UsageError("--size says both: leave out --width and --height")
        width, height = _size(size)
    flags = {
        "encoder.endpoint": encoder,
        "vision.endpoint": vision,
        "generator.endpoint": generator,
        "generate.width": width,
        "generate.height": height,
        "generate.num_inference_steps": num_inference_steps,
        "generate.guidance_scale": guidance_scale,
        "generate.shift": shift,
        "generate.quality": quality,
        "generate.timeout_s": timeout,
    }
    settings = _settings.load(profile, flags)
    if as_json and output == "-":
        raise click.UsageError("--json and --output - both want stdout: choose one")
    from zrelay_client._options import GenerateOptions
    from zrelay_client.cli._painting import Order, paint
    from zrelay_client.cli._previews import Previews
    from zrelay_client.cli._targets import chosen_format, targets

    source = _source(prompt, prompt_embeds, negative_prompt)
    wanted = settings.generate
    file_format = chosen_format(output, format, wanted.format)
    options = GenerateOptions(
        width=wanted.width,
        height=wanted.height,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        shift=wanted.shift,
        seed=seed,
        num_images=num_images,
        format=file_format,
        quality=wanted.quality,
        keep_prompt=not no_prompt_in_file,
        preview_every=preview_every if preview is not None else 0,
    )
    order = Order(
        source=source,
        negative_prompt=negative_prompt,
        options=options,
        targets=targets(output, file_format, prompt=_title(source), count=num_images, force=force),
        previews=Previews(Path(preview)) if preview is not None else None,
        timeout_s=wanted.timeout_s,
    )
    from zrelay_client.cli._console import Console

    console = Console(quiet=quiet)
    found = _settings.endpoints(settings)
    _settings.require(found, settings, *(["encoder"] if isinstance(source, str) else []), "generator")
    endpoints = {role: endpoint.target for role, endpoint in found.items()}
    try:
        said = asyncio.run(paint(order, endpoints, console))
    except KeyboardInterrupt:
        console.clear()
        raise KeyboardInterrupt("no picture was written, and nothing goes on at the generator") from None
    finally:
        console.clear()
    _report(said, as_json=as_json, console_line=console.line)


def _source(prompt: str | None, prompt_embeds: str | None, negative_prompt: str | None) -> str | Path:
    """The prompt's text, or the file of embeddings that takes its place."""
    if prompt_embeds is not None:
        if prompt is not None or negative_prompt is not None:
            raise click.UsageError("--prompt-embeds holds prompt and negative prompt: leave them out")
        return Path(prompt_embeds)
    if prompt is None:
        raise click.UsageError("what shall be painted? Give PROMPT, `-` for stdin, or --prompt-embeds FILE")
    return read_prompt(prompt)


def _title(source: str | Path) -> str:
    return source.stem if isinstance(source, Path) else source


def read_prompt(prompt: str) -> str:
    """The prompt itself, or stdin's text for `-`, without the newline at its end."""
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise click.UsageError("the prompt on stdin is not UTF-8 text") from error


def _size(size: str) -> tuple[int, int]:
    width, _, height = size.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise click.UsageError(f"--size: expected WIDTHxHEIGHT such as 1024x768, got {size!r}")
    return int(width), int(height)


def _report(said: dict[str, Any], *, as_json: bool, console_line: Any) -> None:
    from zrelay_client.cli._console import spoken_seconds

    if as_json:
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        for file in said["files"]:
            if file["path"] != "-":
                click.echo(file["path"])
    sampling, timings = said["sampling"], said["timings_s"]
    for warning in said["warnings"]:
        console_line(f"note: {warning}")
    console_line(
        f"{sampling['width']} x {sampling['height']}, {sampling['num_inference_steps']} steps, seed {said['seed']}, "
        f"{spoken_seconds(timings['total'])}"
    )
    hops = ", ".join(f"{name} {spoken_seconds(took)}" for name, took in timings.items() if name != "total")
    console_line(f"  {hops}")
