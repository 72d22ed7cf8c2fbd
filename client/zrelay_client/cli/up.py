"""`zrelay up`: the services of this machine."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zrelay_client.cli._console import Console
from zrelay_client.cli._flags import PLACE
from zrelay_shared import exits, paths
from zrelay_shared.signals import on_signals

if TYPE_CHECKING:
    from zrelay_client.stack.launch import StackOptions
    from zrelay_client.stack.stack import Stack

_WATCH_S = 0.25


@click.command("up")
@click.option("--model", type=PLACE, metavar="FOLDER", help="Z-Image pipeline folder. Default: the demo checkpoint.")
@click.option(
    "--detach", is_flag=True, help="Return when they are ready and leave them running; `zrelay down` ends them."
)
@click.option(
    "--vision/--no-vision",
    default=None,
    help="Start the vision service too. Default: where the model has one beside it, as the demo checkpoint has.",
)
@click.option("--qwen3-vl", type=PLACE, metavar="FOLDER", help="Qwen3-VL checkpoint for --reference.")
@click.option("--siglip", type=PLACE, metavar="FOLDER", help="SigLIP2 checkpoint for --omni and scores.")
@click.option("--device", metavar="NAME", help="cuda, mps or cpu. Default: the best there is.")
@click.option("--dtype", metavar="NAME", help="bfloat16, float16 or float32. Default: what suits the device.")
@click.option(
    "--grace-s", type=float, default=30.0, metavar="SECONDS", help="For running work at the end. Default: 30."
)
@click.option("--timeout", type=float, default=900.0, metavar="SECONDS", help="For getting ready. Default: 900.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def command(
    model: str | None,
    detach: bool,
    vision: bool | None,
    qwen3_vl: str | None,
    siglip: str | None,
    device: str | None,
    dtype: str | None,
    grace_s: float,
    timeout: float,
    quiet: bool,
) -> int:
    """Start encoder, vision service and generator on this machine, on free ports, and say where they are.

    `zrelay generate` finds them by itself. Without --detach this stays until Ctrl-C, which ends them. Their logs are
    kept under the state folder.
    """
    from zrelay_client.stack.bundle import demo_checkpoint, vision_model
    from zrelay_client.stack.launch import StackOptions

    if vision is False and (qwen3_vl is not None or siglip is not None):
        raise click.UsageError("--no-vision and a folder for the vision service: choose one")
    folder = _absolute(model) or demo_checkpoint()
    if vision is None:
        vision = qwen3_vl is not None or siglip is not None or vision_model(folder) is not None
    options = StackOptions(
        model=folder,
        state=paths.state_dir(),
        logs=paths.logs_dir(),
        roles=("encoder", "vision", "generator") if vision else ("encoder", "generator"),
        device=device,
        dtype=dtype,
        grace_s=grace_s,
        timeout_s=timeout,
        qwen3_vl=_absolute(qwen3_vl),
        siglip=_absolute(siglip),
    )
    return asyncio.run(_up(options, detach=detach, console=Console(quiet=quiet)))


def _absolute(folder: str | None) -> Path | None:
    return None if folder is None else Path(folder).expanduser().absolute()


async def _up(options: "StackOptions", *, detach: bool, console: Console) -> int:
    from zrelay_client.stack.stack import start

    stack = start(options)
    stop = asyncio.Event()
    with on_signals(("SIGINT", "SIGTERM", "SIGHUP"), stop.set):
        return await _watch(stack, stop, options, detach=detach, console=console)


async def _watch(
    stack: "Stack", stop: asyncio.Event, options: "StackOptions", *, detach: bool, console: Console
) -> int:
    leave_running = False
    try:
        ready = asyncio.create_task(stack.ready(console.line, console.status))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            console.line("interrupted: what was started is ended")
            return exits.INTERRUPTED
        ready.result()
        for role, endpoint in stack.endpoints.items():
            click.echo(f"{role} {endpoint}")
        console.line(f"logs in {options.logs}")
        if detach:
            leave_running = True
            console.line('running; paint with `zrelay generate "..."`, end with `zrelay down`')
            return exits.OK
        console.line('paint with `zrelay generate "..."`; Ctrl-C ends the services')
        while not stop.is_set() and not stack.stopped:
            stack.check()
            await asyncio.wait({stopped}, timeout=_WATCH_S)
        console.line("ending")
        return exits.OK
    finally:
        console.clear()
        if not leave_running:
            stack.stop()
