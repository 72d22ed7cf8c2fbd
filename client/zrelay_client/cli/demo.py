"""`zrelay demo`: services, a picture, and nothing left behind but the picture."""

import asyncio
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from zrelay_client.cli._console import Console, spoken_seconds
from zrelay_client.cli._flags import PLACE

if TYPE_CHECKING:
    from zrelay_client.options import GenerateKeywords

_PROMPT = "a small red circle on a blue background"


@click.command("demo")
@click.argument("prompt", default=_PROMPT)
@click.option(
    "-o",
    "--output",
    type=PLACE,
    metavar="FILE",
    default="out/demo.png",
    help="Replaced where it exists. Default: out/demo.png.",
)
@click.option("--seed", type=int, default=0, help="Default: 0.")
@click.option("--reference", type=PLACE, metavar="IMAGE", help="Blend this image into the prompt: three services.")
@click.option("--alpha", type=float, help="The reference's share, 0 to 1. Default: 0.3.")
@click.option("--omni", type=PLACE, metavar="IMAGE", multiple=True, help="Paint after this image; repeat for up to 8.")
def command(
    prompt: str, output: str, seed: int, reference: str | None, alpha: float | None, omni: tuple[str, ...]
) -> None:
    """Start encoder and generator as processes of their own, paint PROMPT through them, end them.

    Runs the demo checkpoint, which knows simple shapes on plain backgrounds. Needs no configuration and changes none.
    With --reference or --omni the vision service runs too; what the demo's vision models make of an image is in
    docs/explanation/conditioning.md.
    """
    if reference is not None and omni:
        raise click.UsageError("--reference blends into the prompt, --omni stands beside it: choose one")
    if alpha is not None and reference is None:
        raise click.UsageError("--alpha is about a reference: give --reference IMAGE too")
    if output == "-":
        raise click.UsageError("--output: demo writes a file, name one; `zrelay generate -o -` writes to stdout")
    file = Path(output)
    if file.is_dir():
        file /= "demo.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="zrelay-demo-") as state:
        options: GenerateKeywords = {"seed": seed, "reference": reference, "omni": omni}
        if alpha is not None:
            options["conditioning"] = {"alpha": alpha}
        asyncio.run(_demo(prompt, file, options, Path(state), console))


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


async def _demo(prompt: str, file: Path, options: "GenerateKeywords", state: Path, console: Console) -> None:
    from zrelay_client._vision.references import check_reference_files, has_references
    from zrelay_client.cli._painting import GenerateCommand, paint
    from zrelay_client.cli._targets import chosen_format, targets
    from zrelay_client.options import GenerateOptions, options_of
    from zrelay_client.settings import Settings
    from zrelay_client.stack.bundle import demo_checkpoint, omni_checkpoint
    from zrelay_client.stack.launch import StackOptions
    from zrelay_client.stack.stack import start

    format = chosen_format(str(file), None, None)
    order = GenerateCommand(
        source=prompt,
        negative_prompt=None,
        options=options_of(GenerateOptions, options, {"format": format}),
        targets=targets(str(file), format, prompt=prompt, count=1, force=True),
        previews=None,
    )
    order.check()
    check_reference_files(order.options)  # before anything is started
    signal.signal(signal.SIGTERM, _terminated)  # ends the services too
    started = time.monotonic()
    model = omni_checkpoint(state / "omni") if options.get("omni") else demo_checkpoint()
    roles = ("encoder", "vision", "generator") if has_references(order.options) else ("encoder", "generator")
    console.line(f"starting {', '.join(roles[:-1])} and {roles[-1]} ...")
    stack = start(StackOptions(model=model, state=state, logs=state / "logs", roles=roles, grace_s=5.0))
    try:
        await stack.ready(console.line, console.status)
        settings = Settings(running=stack.endpoints)
        ready_s = time.monotonic() - started
        said = await paint(order, settings, console)
        said_again = await paint(order, settings, console)
    finally:
        console.clear()
        stack.stop()
    sampling = said["sampling"]
    click.echo(f"painted {prompt!r} to {said['files'][0]['path']}")
    console.line(
        f"  {sampling['width']} x {sampling['height']}, {sampling['num_inference_steps']} steps, seed {said['seed']}; "
        f"services ready in {spoken_seconds(ready_s)}, first picture {spoken_seconds(said['timings_s']['total'])}, "
        f"second {spoken_seconds(said_again['timings_s']['total'])}; the services are ended"
    )
