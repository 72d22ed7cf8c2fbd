"""`zrelay up`: starts the services on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zrelay_client.cli._options import PATH, Number, OptionsCommand, json_option, option, quiet_option, run
from zrelay_client.cli._output import Console, print_json
from zrelay_shared import exits, paths
from zrelay_shared.limits import DEVICES, DTYPES
from zrelay_shared.signals import TERMINATING, on_signals

if TYPE_CHECKING:
    from asyncio import Event

    from zrelay_client.stack.launch import StackOptions
    from zrelay_client.stack.stack import Stack

_WATCH_S = 0.25


@click.command("up", cls=OptionsCommand)
@option("--model", type=PATH, metavar="FOLDER", help="Z-Image pipeline folder.  [default: the demo checkpoint]")
@option(
    "--detach",
    is_flag=True,
    help="Return when the services are ready and leave them running; `zrelay down` stops them.",
)
@option(
    "--vision/--no-vision",
    default=None,
    help="Start the vision service, too.  [default: if the model has vision checkpoints beside it, as the demo has]",
)
@option("--qwen3-vl", type=PATH, metavar="FOLDER", help="Qwen3-VL checkpoint, for --reference.")
@option("--siglip", type=PATH, metavar="FOLDER", help="SigLIP2 checkpoint, for --omni and scores.")
@option(
    "--host",
    metavar="HOST",
    help="Let machines that `zrelay join` has paired connect: listen with TLS on this address or name of this machine, "
    "on the default ports. `zrelay pair` makes the certificates.  [default: this machine alone, on free ports]",
)
@option("--device", type=click.Choice(DEVICES), help="Where the models run.  [default: the first that exists]")
@option("--dtype", type=click.Choice(DTYPES), help="Data type of the computation.  [default: the fastest that fits]")
@option(
    "--memory-plan/--no-memory-plan",
    default=True,
    help="Divide the free memory among the services, and refuse those that do not fit.  [default: --memory-plan]",
)
@option(
    "--grace-s",
    type=Number(),
    default=30.0,
    metavar="SECONDS",
    help="Time for running jobs when the services stop.  [default: 30]",
)
@option("--timeout", type=Number(), default=900.0, metavar="SECONDS", help="Time for the start.  [default: 900]")
@json_option
@quiet_option
def command(
    model: str | None,
    detach: bool,
    vision: bool | None,
    qwen3_vl: str | None,
    siglip: str | None,
    host: str | None,
    device: str | None,
    dtype: str | None,
    memory_plan: bool,
    grace_s: float,
    timeout: float,
    as_json: bool,
    quiet: bool,
) -> int:
    """Start encoder, vision service and generator on this machine, and print their addresses.

    `zrelay generate` finds them without configuration. Without --detach the command runs until Ctrl-C, which stops the
    services. Their logs are in the state folder.
    """
    from zrelay_client.stack.bundle import demo_checkpoint, vision_model
    from zrelay_client.stack.launch import StackOptions

    if vision is False and (qwen3_vl is not None or siglip is not None):
        raise click.UsageError("--no-vision contradicts --qwen3-vl and --siglip: leave out one of them")
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
        memory_plan=memory_plan,
        host=host,
    )
    with Console(quiet=quiet) as console:
        return run(_up(options, detach=detach, as_json=as_json, console=console))


def _absolute(folder: str | None) -> Path | None:
    return None if folder is None else paths.expand(folder).absolute()


async def _up(options: "StackOptions", *, detach: bool, as_json: bool, console: Console) -> int:
    import asyncio

    from zrelay_client.stack.stack import start

    stack = start(options)
    stop = asyncio.Event()
    with on_signals(("SIGINT", *TERMINATING), stop.set):
        return await _watch(stack, stop, options, detach=detach, as_json=as_json, console=console)


async def _watch(
    stack: "Stack", stop: "Event", options: "StackOptions", *, detach: bool, as_json: bool, console: Console
) -> int:
    """Prints the services once they are ready, and stops them on a signal unless they are detached."""
    import asyncio

    leave_running = False
    try:
        ready = asyncio.create_task(stack.ready(console.message, console.status))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            console.message("interrupted: the services are stopped")
            return exits.INTERRUPTED
        ready.result()
        console.clear()
        if as_json:
            print_json({"endpoints": stack.endpoints, "logs": str(options.logs)})
        else:
            for role, endpoint in stack.endpoints.items():
                console.result(f"{role} {endpoint}")
        console.message(f"logs: {options.logs}")
        if detach:
            leave_running = True
            console.message('the services run; use `zrelay generate "..."`, stop them with `zrelay down`')
            return exits.OK
        console.message('the services run; use `zrelay generate "..."` elsewhere, stop them here with Ctrl-C')
        while not stop.is_set() and not stack.stopped:
            stack.check()
            await asyncio.wait({stopped}, timeout=_WATCH_S)
        console.message("stopping")
        return exits.OK
    finally:
        console.clear()
        if not leave_running:
            stack.stop()
