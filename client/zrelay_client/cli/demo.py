"""`zrelay demo`: services, a picture, and nothing left behind but the picture."""

import asyncio
import signal
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import click

from zrelay_client.cli._console import Console, spoken_seconds
from zrelay_client.cli._flags import PLACE

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
def command(prompt: str, output: str, seed: int) -> None:
    """Start encoder and generator as processes of their own, paint PROMPT through them, end them.

    Runs the demo checkpoint, which knows simple shapes on plain backgrounds. Needs no configuration and changes none.
    """
    if output == "-":
        raise click.UsageError("--output: demo writes a file, name one; `zrelay generate -o -` writes to stdout")
    file = Path(output)
    if file.is_dir():
        file /= "demo.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    console = Console()
    signal.signal(signal.SIGTERM, _terminated)  # ends the services too
    with tempfile.TemporaryDirectory(prefix="zrelay-demo-") as state:
        asyncio.run(_demo(prompt, file, seed, Path(state), console))


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


async def _demo(prompt: str, file: Path, seed: int, state: Path, console: Console) -> None:
    from zrelay_client._options import GenerateOptions
    from zrelay_client._stack.bundle import demo_checkpoint
    from zrelay_client._stack.launch import StackOptions
    from zrelay_client._stack.stack import start
    from zrelay_client.cli._painting import Order, paint
    from zrelay_client.cli._targets import chosen_format, targets

    format = chosen_format(str(file), None, None)
    order = Order(
        source=prompt,
        negative_prompt=None,
        options=GenerateOptions(seed=seed, format=format),
        targets=targets(str(file), format, prompt=prompt, count=1, force=True),
        previews=None,
        timeout_s=None,
    )
    order.targets.check()
    started = time.monotonic()
    console.line("starting encoder and generator ...")
    stack = start(StackOptions(model=demo_checkpoint(), state=state, logs=state / "logs", grace_s=5.0))
    try:
        await stack.ready(console.line, console.status)
        ready_s = time.monotonic() - started
        said = await paint(order, stack.endpoints, console)
        said_again = await paint(order, stack.endpoints, console)
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
