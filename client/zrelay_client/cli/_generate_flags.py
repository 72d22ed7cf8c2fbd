"""The flags of `zrelay generate`, a group for each thing that they are about."""

from dataclasses import dataclass

import click

from zrelay_client.cli._flags import PLACE, grouped
from zrelay_client.cli._targets import FORMATS
from zrelay_client.options import Priority

PRIORITIES: tuple[Priority, ...] = ("interactive", "normal", "batch")


@dataclass(frozen=True, slots=True)
class PictureFlags:
    """What is painted; None leaves it to configuration or checkpoint."""

    negative_prompt: str | None
    seed: int | None
    width: int | None
    height: int | None
    size: str | None
    num_inference_steps: int | None
    num_images: int
    guidance_scale: float | None
    shift: float | None
    image: str | None
    strength: float | None
    skip_layer_guidance_scale: float | None
    skip_guidance_layers: str | None

    @property
    def layers(self) -> list[int] | None:
        """The blocks to skip. Raises click.UsageError where they are no list of numbers."""
        if self.skip_guidance_layers is None:
            return None
        parts = [part.strip() for part in self.skip_guidance_layers.split(",")]
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise click.UsageError(f"--skip-guidance-layers: expected 7,8,9, got {self.skip_guidance_layers!r}")
        return [int(part) for part in parts]

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """Width and height. Raises click.UsageError where they are said twice or not understood."""
        if self.size is None:
            return self.width, self.height
        if self.width is not None or self.height is not None:
            raise click.UsageError("--size says both: leave out --width and --height")
        width, _, height = self.size.lower().partition("x")
        if not (width.isdigit() and height.isdigit()):
            raise click.UsageError(f"--size: expected WIDTHxHEIGHT such as 1024x768, got {self.size!r}")
        return int(width), int(height)


@dataclass(frozen=True, slots=True)
class FileFlags:
    """Where it goes and as what."""

    output: str | None
    force: bool
    format: str | None
    quality: int | None
    no_prompt_in_file: bool
    preview: str | None
    preview_every: int


@dataclass(frozen=True, slots=True)
class BatchFlags:
    """How many jobs to run, how urgent they are, and whether the command waits for them."""

    count: int | None
    seeds: str | None
    in_flight: int | None
    priority: Priority | None
    detach: bool

    def priority_for(self, num_images: int) -> Priority:
        """Returns `--priority`, else "interactive" for a job of one image, and "normal" for more images or jobs."""
        if self.priority is not None:
            return self.priority
        return "interactive" if self.count is None and self.seeds is None and num_images == 1 else "normal"


picture_options = grouped(
    "picture",
    PictureFlags,
    click.option("--negative-prompt", metavar="TEXT", help="Negative prompt for guidance. Default: the empty prompt."),
    click.option("--seed", type=int, help="Image i gets seed + i. Default: a random seed, which is printed."),
    click.option("--width", type=int, help="Pixels. Default: the checkpoint's."),
    click.option("--height", type=int, help="Pixels. Default: the checkpoint's."),
    click.option("--size", metavar="WxH", help="Width and height at once."),
    click.option("--num-inference-steps", type=int, help="Forwards of the transformer. Default: the checkpoint's."),
    click.option("--num-images", type=int, default=1, help="Pictures of one job; files get -1, -2, ... Default: 1."),
    click.option(
        "--guidance-scale", type=float, help="Classifier-free guidance; 0 turns it off. Default: the checkpoint's."
    ),
    click.option("--shift", type=float, help="Shift of the schedule. Default: the checkpoint's."),
    click.option("--image", type=PLACE, metavar="FILE", help="Start from this picture (img2img) in place of noise."),
    click.option("--strength", type=float, help="Share of the schedule that is run on --image. Default: 0.6."),
    click.option("--skip-layer-guidance-scale", type=float, help="Skip-layer guidance. Default: none; 2.5 is usual."),
    click.option("--skip-guidance-layers", metavar="LIST", help="Blocks that it skips. Default: 7,8,9,10,11,12."),
)

file_options = grouped(
    "file",
    FileFlags,
    click.option(
        "-o",
        "--output",
        type=PLACE,
        metavar="FILE",
        help="File or folder; `-` is stdout. Default: a name from prompt and seed.",
    ),
    click.option("--force", is_flag=True, help="Replace files that exist."),
    click.option("--format", type=click.Choice(FORMATS), help="Default: by the file's suffix, else png."),
    click.option("--quality", type=int, help="1 to 100, for jpeg and webp."),
    click.option("--no-prompt-in-file", is_flag=True, help="Leave the prompt out of the picture's metadata."),
    click.option(
        "--preview",
        type=PLACE,
        metavar="PLACE",
        help="Write previews: a .jpg that is replaced, or a folder that keeps all.",
    ),
    click.option("--preview-every", type=int, default=1, help="Steps from preview to preview. Default: 1."),
)

batch_options = grouped(
    "batch",
    BatchFlags,
    click.option(
        "--count",
        type=click.IntRange(1),
        metavar="N",
        help="N jobs with seeds from --seed on: shared among the generators, written as they come.",
    ),
    click.option("--seeds", metavar="LIST", help="A job for each seed: 7,9,100-199."),
    click.option(
        "--in-flight",
        type=click.IntRange(1),
        metavar="N",
        help="Jobs under way at a time, with --count or --seeds. Default: 8 for each generator.",
    ),
    click.option(
        "--priority",
        type=click.Choice(PRIORITIES),
        help="Urgency of the jobs at the generator. Default: interactive for one image, normal for more.",
    ),
    click.option("--detach", is_flag=True, help="Submit the job and return; prints how to fetch its images."),
)
