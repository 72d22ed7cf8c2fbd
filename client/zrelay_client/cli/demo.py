"""`zrelay demo`: starts the services, generates an image, and stops them."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from zrelay_client.cli._options import PATH, Integer, Number, OptionsCommand, option, run
from zrelay_client.cli._output import Console, counted, format_seconds
from zrelay_shared.requests import request_setting
from zrelay_shared.signals import on_termination

_PROMPT = "a small red circle on a blue background"


@click.command("demo", cls=OptionsCommand)
@click.argument("prompt", default=_PROMPT)
@option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    default="out/demo.png",
    help="The file to write, which is replaced if it exists.  [default: out/demo.png]",
)
@option("--seed", type=Integer(), default=0, metavar="N", help="Seed of the image.  [default: 0]")
@option("--reference", type=PATH, metavar="IMAGE", help="Blend this image into the prompt; starts the vision service.")
@option("--alpha", type=Number(), metavar="X", help=f"{request_setting('condition.alpha').help}  [default: 0.3]")
@option(
    "--omni",
    type=PATH,
    metavar="IMAGE",
    multiple=True,
    help="Generate from this image and the prompt; repeat it for up to 8. Starts the vision service.",
)
def command(
    prompt: str, output: str, seed: int, reference: str | None, alpha: float | None, omni: tuple[str, ...]
) -> None:
    """Start encoder and generator as processes, generate PROMPT with them, and stop them.

    The demo checkpoint knows simple shapes on plain backgrounds. No configuration is needed, and none is changed. What
    the demo's vision models can do is described in docs/explanation/conditioning.md.
    """
    import tempfile

    from zrelay_client.cli._files import is_folder

    if reference is not None and omni:
        raise click.UsageError(
            "--reference blends an image into the prompt, --omni generates from images beside it: choose one"
        )
    if alpha is not None and reference is None:
        raise click.UsageError("--alpha is for reference images: add --reference IMAGE")
    if output == "-":
        raise click.UsageError("--output: expected a file, got -; `zrelay generate -o -` writes to standard output")
    file = Path(output)
    if is_folder(output):
        file /= "demo.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"seed": seed}
    if reference is not None:
        options |= {"reference": reference, "conditioning": {} if alpha is None else {"alpha": alpha}}
    if omni:
        options["omni"] = omni
    with tempfile.TemporaryDirectory(prefix="zrelay-demo-") as state, Console() as console:
        run(_demo(prompt, file, options, Path(state), console))


def _terminated(number: int) -> NoReturn:
    raise SystemExit(128 + number)


async def _demo(prompt: str, file: Path, options: dict[str, Any], state: Path, console: Console) -> None:
    from zrelay_client._vision.references import has_references
    from zrelay_client.cli._files import chosen_format, targets
    from zrelay_client.cli._image_jobs import ImageJob
    from zrelay_client.cli._running import generate_one
    from zrelay_client.options import EncodeOptions, GenerateOptions
    from zrelay_client.settings import Settings
    from zrelay_client.stack.bundle import demo_checkpoint, omni_checkpoint
    from zrelay_client.stack.launch import StackOptions
    from zrelay_client.stack.stack import start

    format = chosen_format(str(file), None, None)
    job = ImageJob(
        source=prompt,
        negative_prompt=None,
        encoding=EncodeOptions(),
        options=GenerateOptions(**options, format=format),
        targets=targets(str(file), format, prompt=prompt, count=1, force=True),
    )
    job.check()  # before anything is started
    on_termination(_terminated)  # so that SIGTERM and a closed terminal stop the services, too
    started = time.monotonic()
    model = omni_checkpoint(state / "omni") if job.options.omni else demo_checkpoint()
    roles = ("encoder", "vision", "generator") if has_references(job.options) else ("encoder", "generator")
    console.message(f"starting {', '.join(roles[:-1])} and {roles[-1]} ...")
    stack = start(StackOptions(model=model, state=state, logs=state / "logs", roles=roles, grace_s=5.0))
    try:
        await stack.ready(console.message, console.status)
        ready_s = time.monotonic() - started
        settings = Settings(running=stack.endpoints)
        first = await generate_one(settings, job, console)
        # The second image is only timed. The folder of the state is removed at the end.
        again = targets(str(state / file.name), format, prompt=prompt, count=1, force=True)
        second = await generate_one(settings, replace(job, targets=again), console)
    finally:
        console.clear()
        stack.stop()
    sampling = first["sampling"]
    steps = counted(sampling["num_inference_steps"], "step")
    console.result(f"generated {prompt!r}: {first['files'][0]['path']}")
    console.message(
        f"  {sampling['width']} x {sampling['height']}, {steps}, seed {first['seed']}; "
        f"services ready in {format_seconds(ready_s)}, first image {format_seconds(first['timings_s']['total'])}, "
        f"second {format_seconds(second['timings_s']['total'])}; the services are stopped",
        wrap=True,
    )
