"""`zrelay generate`: images from a prompt, from embeddings of a file, or from a file of prompts."""

from typing import Any

import click

from zrelay_client.cli._options import PATH, Flags, Integer, OptionsCommand, force_option, option, quiet_option
from zrelay_shared.requests import request_settings

SETTINGS = [one for one in request_settings("generate", "encode", "condition") if one.dotted != "encode.deterministic"]
"""The settings that are options of the command; `--deterministic` counts for the encoder, too."""


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
    help="Start from this image in place of noise (image to image). Its size counts where none is set, scaled down to "
    "the checkpoint's area.",
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
    type=Integer(1),
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
    type=Integer(1),
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
@option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object to standard output; with --prompts one for each line of the file.",
)
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
    from zrelay_client.cli._generation import generate
    from zrelay_client.cli._image_jobs import GenerateArguments

    return generate(GenerateArguments(**values), flags, profile)
