"""`zrelay generate`: images from a prompt, from embeddings of a file, or from a file of prompts."""

from pathlib import Path
from typing import Any

import click

from zrelay_client.cli._image_jobs import SETTINGS, GenerateArguments, image_job, seeds_of_jobs, size_flags, uses_vision
from zrelay_client.cli._options import (
    PATH,
    Flags,
    OptionsCommand,
    force_option,
    json_option,
    load_settings,
    option,
    quiet_option,
    read_prompt,
)
from zrelay_client.cli._output import Console

_ENCODE_SETTINGS = tuple(one.dotted for one in SETTINGS if one.section == "encode")


@click.command("generate", cls=OptionsCommand, settings=SETTINGS, roles=("encoder", "vision", "generator"))
@click.argument("prompt", required=False)
@option("--size", heading="Image", metavar="WxH", help="Width and height in pixels, for example 1024x768.")
@option(
    "--negative-prompt",
    heading="Guidance",
    metavar="TEXT",
    help="What guidance leads away from.  [default: the empty prompt]",
)
@option(
    "--prompt-embeds",
    heading="Prompt",
    type=PATH,
    metavar="FILE",
    help="Embeddings that `zrelay encode` wrote, in place of PROMPT.",
)
@option(
    "--image",
    heading="Reference images",
    type=PATH,
    metavar="FILE",
    help="Start from this image in place of noise (image to image).",
)
@option(
    "--omni",
    heading="Reference images",
    type=PATH,
    metavar="IMAGE",
    multiple=True,
    help="Generate from this image and the prompt, with a Z-Image Omni checkpoint; repeat it for up to 8.",
)
@option(
    "--reference",
    heading="Reference images",
    type=PATH,
    metavar="IMAGE",
    help="Blend this image, or a file of `zrelay vision encode`, into the prompt (experimental). The options below "
    "say how.",
)
@option(
    "-o",
    "--output",
    heading="Output",
    type=PATH,
    metavar="PATH",
    help="A file, or a folder with / at its end, which is created; - is standard output.  [default: a name from "
    "prompt and seed]",
)
@force_option
@option(
    "--preview",
    heading="Output",
    type=PATH,
    metavar="PATH",
    help="Write previews: to a .jpg file that is replaced, or to a folder that keeps all.",
)
@option(
    "--count",
    heading="Many images",
    type=click.IntRange(1),
    metavar="N",
    help="Run N jobs with seeds from --seed on; generators share them, and images are written as they arrive.",
)
@option("--seeds", heading="Many images", metavar="LIST", help="Run a job for each seed, for example 7,9,100-199.")
@option(
    "--prompts",
    heading="Many images",
    type=PATH,
    metavar="FILE",
    help="Run a job for each line of a JSON Lines file, as described above; - reads standard input.",
)
@option(
    "--in-flight",
    heading="Many images",
    type=click.IntRange(1),
    metavar="N",
    help="Jobs at the same time.  [default: 8 for each generator]",
    show_default=False,
)
@option(
    "--detach",
    heading="Many images",
    is_flag=True,
    help="Submit the job and return; prints its id, and the command that fetches its images.",
)
@json_option
@quiet_option
def command(flags: Flags, profile: str | None, **values: Any) -> int:
    """Generate images from PROMPT (`-` reads it from standard input).

    Options that are not given have the checkpoint's defaults. Most can also be set by a variable such as
    ZRELAY_GENERATE_WIDTH, or in the tables [generate], [encode] and [condition] of the configuration file; `zrelay
    config` shows the effective values. The image file contains the settings that made it; `zrelay info FILE` prints
    them. Ctrl-C cancels the job; pressed twice it leaves the job running and prints the command that fetches its
    images.

    \b
    zrelay generate "a red fox" -o fox.png --seed 7
    zrelay generate "a red fox" -o fox.png --num-images 4   # fox-1.png ... fox-4.png
    zrelay generate "a red fox" -o foxes/ --count 1000
    zrelay generate "a red fox" -o foxes/ --seeds 1-500 --priority batch
    zrelay generate --prompts animals.jsonl -o animals/
    zrelay generate "a red fox" --reference style.png --alpha 0.3
    zrelay generate "a red fox in this room" --omni room.png
    zrelay generate "a red fox" --detach       # then: zrelay jobs fetch ID -o fox.png
    echo "a red fox" | zrelay generate - -o fox.webp --json

    Each line of a --prompts file is an object with "prompt" and any option by its name, for example
    {"prompt": "a red fox", "seed": 7, "size": "1024x768", "output": "fox.png"}. Options of the command line are
    defaults of all lines. Results and failures are appended to NAME.results.jsonl in the output folder; the same
    command again runs only lines that are not done.
    """
    arguments = GenerateArguments(**values)
    if arguments.size is not None:
        if flags["generate.width"] is not None or flags["generate.height"] is not None:
            raise click.UsageError("--size sets width and height: leave out --width and --height")
        flags |= size_flags(arguments.size)
    flags["encode.deterministic"] = flags["generate.deterministic"]
    _check_flags(arguments, flags)
    if arguments.as_json and arguments.output == "-":
        raise click.UsageError("--json and --output - both use standard output: choose one")
    if arguments.prompts is not None:
        from zrelay_client.cli._prompts_file import run_prompts

        return run_prompts(arguments, flags, profile)
    source = _source(arguments)
    needed = ["encoder"] if isinstance(source, str) else []
    needed += ["vision"] if uses_vision(arguments) else []
    settings = load_settings(profile, flags, *needed, "generator")
    seeds = seeds_of_jobs(arguments, settings.config)
    job = image_job(arguments, settings.config, source, jobs=len(seeds or [0]))
    from zrelay_client.cli import _running

    with Console(quiet=arguments.quiet) as console:
        if arguments.detach:
            return _running.run_detached(settings, job, seeds, console, as_json=arguments.as_json)
        if seeds is None:
            return _running.run_one(settings, job, console, as_json=arguments.as_json)
        return _running.run_batch(settings, job, seeds, arguments.in_flight, console, as_json=arguments.as_json)


def _check_flags(arguments: GenerateArguments, flags: Flags) -> None:
    """Refuses options that go with another option which is missing."""
    given = [dotted for dotted, value in flags.items() if value is not None]

    def require(other: bool, what: str, remedy: str, *prefixes: str) -> None:
        for dotted in given:
            if not other and dotted.startswith(prefixes):
                flag = next(one for one in SETTINGS if one.dotted == dotted).flags[0]
                raise click.UsageError(f"{flag} is for {what}: {remedy}")

    if arguments.reference is not None and arguments.omni:
        raise click.UsageError(
            "--reference blends an image into the prompt, --omni generates from images beside it: choose one"
        )
    lines = arguments.prompts is not None  # whose objects may hold the other option
    reference = arguments.reference is not None
    require(reference or lines, "reference images", "add --reference IMAGE", "condition.")
    require(arguments.image is not None or lines, "an image to start from", "add --image FILE", "generate.strength")
    require(arguments.preview is not None, "previews", "add --preview PATH", "generate.preview_")
    if arguments.detach:
        for flag, value, verb in (
            ("--output", arguments.output, "fetch ID -o PATH"),
            ("--force", arguments.force or None, "fetch ID --force"),
            ("--preview", arguments.preview, "watch ID --preview PATH"),
        ):
            if value is not None:
                raise click.UsageError(
                    f"{flag} has no effect with --detach, which writes no files: leave it out, and run "
                    f"`zrelay jobs {verb}` later"
                )
    if arguments.in_flight is not None and not (lines or arguments.count is not None or arguments.seeds is not None):
        raise click.UsageError("--in-flight is for many jobs: add --count, --seeds or --prompts")
    if arguments.prompt_embeds is not None:
        prompt = "a prompt, which --prompt-embeds replaces"
        require(False, prompt, "pass it to `zrelay encode`", *_ENCODE_SETTINGS)


def _source(arguments: GenerateArguments) -> str | Path:
    """Returns the prompt, or the file of embeddings that takes its place."""
    if arguments.prompt_embeds is not None:
        if arguments.prompt is not None or arguments.negative_prompt is not None:
            raise click.UsageError("--prompt-embeds holds prompt and negative prompt: leave them out")
        return Path(arguments.prompt_embeds)
    if arguments.prompt is None:
        raise click.UsageError(
            "expected a prompt, got none: add PROMPT, `-` for standard input, --prompt-embeds FILE or --prompts FILE"
        )
    return read_prompt(arguments.prompt)
