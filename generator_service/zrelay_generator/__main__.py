"""The generator's command line: flags to a configuration; torch is loaded only to serve."""

import sys
from pathlib import Path

import click

from zrelay_generator.settings import DEVICES, DTYPES, GeneratorConfig
from zrelay_shared import checkpoints, command, paths
from zrelay_shared.limits import DEFAULT_PORTS

_DEFAULTS = GeneratorConfig(model=Path())


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(path_type=Path), required=True, help="A Z-Image pipeline folder.")
@click.option("--listen", default=f"127.0.0.1:{DEFAULT_PORTS['generator']}", help="HOST:PORT; port 0 takes a free one.")
@click.option("--insecure-listen", is_flag=True, help="Allow to listen beyond this machine without encryption.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="Where the model runs.")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", help="What it computes in.")
@click.option("--threads", type=click.IntRange(1), help="Torch threads on a CPU.  [default: all cores but one]")
@click.option(
    "--state",
    metavar="DIR|none",
    help="Where jobs are kept; none keeps them in memory.  [default: $ZRELAY_STATE, $STATE_DIRECTORY or "
    "~/.local/state/zrelay]",
)
@click.option("--max-waiting", type=click.IntRange(1), default=_DEFAULTS.max_waiting, help="Requests that may wait.")
@click.option(
    "--max-wait-s", type=click.FloatRange(min=0), default=_DEFAULTS.max_wait_s, help="Seconds of work before one."
)
@click.option(
    "--max-waiting-mib",
    type=click.IntRange(0),
    default=_DEFAULTS.max_waiting_bytes >> 20,
    help="MiB on disk of what they need.",
)
@click.option(
    "--max-caller-waiting", type=click.IntRange(1), help="Requests of one caller that may wait.  [default: any]"
)
@click.option(
    "--lease-s", type=click.FloatRange(min=0), default=_DEFAULTS.lease_s, help="Seconds that an unwatched job lives."
)
@click.option(
    "--keep-results-h",
    type=click.FloatRange(min=0),
    default=_DEFAULTS.keep_results_s / 3600,
    help="Hours that ended jobs are kept.",
)
@click.option(
    "--keep-results", type=click.IntRange(0), default=_DEFAULTS.keep_results, help="Ended jobs that are kept."
)
@click.option(
    "--keep-results-mib",
    type=click.IntRange(0),
    default=_DEFAULTS.keep_results_bytes >> 20,
    help="MiB of finished images that are kept.",
)
@click.option(
    "--keep-contents-mib",
    type=click.IntRange(0),
    default=_DEFAULTS.keep_contents_bytes >> 20,
    help="MiB of sent embeddings and images that are kept.",
)
@click.option("--max-side", type=click.IntRange(64), default=_DEFAULTS.max_side, help="Greatest side in pixels.")
@click.option("--max-pixels", type=click.IntRange(4096), default=_DEFAULTS.max_pixels, help="Greatest area in pixels.")
@click.option("--max-steps", type=click.IntRange(1), default=_DEFAULTS.max_steps, help="Greatest num_inference_steps.")
@click.option("--max-images", type=click.IntRange(1), default=_DEFAULTS.max_images, help="Greatest num_images.")
@click.option("--tick-tokens", type=click.IntRange(1), default=_DEFAULTS.tick_tokens, help="Tokens of one forward.")
@click.option(
    "--deterministic", is_flag=True, help="Paint images one at a time: the same bit for bit in any company, but slower."
)
@click.option("--log-level", type=click.Choice(("debug", "info", "warning", "error")), default="info")
@click.option(
    "--grace-s", type=click.FloatRange(min=0), default=30.0, help="Seconds that running jobs get after SIGTERM."
)
@click.option("--address-file", type=click.Path(path_type=Path), help="Where to write HOST:PORT once listening.")
def cli(
    model: Path,
    listen: str,
    insecure_listen: bool,
    device: str,
    dtype: str,
    threads: int | None,
    state: str | None,
    max_waiting: int,
    max_wait_s: float,
    max_waiting_mib: int,
    max_caller_waiting: int | None,
    lease_s: float,
    keep_results_h: float,
    keep_results: int,
    keep_results_mib: int,
    keep_contents_mib: int,
    max_side: int,
    max_pixels: int,
    max_steps: int,
    max_images: int,
    tick_tokens: int,
    deterministic: bool,
    log_level: str,
    grace_s: float,
    address_file: Path | None,
) -> None:
    """Serve prompt_embeds to images over gRPC."""

    def build() -> object:
        try:
            config = GeneratorConfig(
                model=model,
                device=device,
                dtype=dtype,
                threads=threads,
                state=_state(state),
                max_waiting=max_waiting,
                max_wait_s=max_wait_s,
                max_waiting_bytes=max_waiting_mib << 20,
                max_caller_waiting=max_caller_waiting,
                lease_s=lease_s,
                keep_results_s=keep_results_h * 3600,
                keep_results=keep_results,
                keep_results_bytes=keep_results_mib << 20,
                keep_contents_bytes=keep_contents_mib << 20,
                max_side=max_side,
                max_pixels=max_pixels,
                max_steps=max_steps,
                max_images=max_images,
                tick_tokens=tick_tokens,
                deterministic=deterministic,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        pipeline = checkpoints.open_pipeline(model)  # a folder that lacks something is told before torch is loaded
        for name in ("transformer", "vae", "scheduler"):
            pipeline.component(name)
        from zrelay_generator.service import GeneratorServicer  # loads torch and diffusers

        return GeneratorServicer(config)

    sys.exit(
        command.start(
            build,
            listen=listen,
            insecure_listen=insecure_listen,
            log_level=log_level,
            grace_s=grace_s,
            address_file=address_file,
        )
    )


def _state(given: str | None) -> Path | None:
    if given is None:
        return paths.state_dir()
    if not given:
        raise click.UsageError("--state: expected a folder, or none to keep jobs in memory alone; got an empty name")
    return None if given == "none" else Path(given)


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` without the program's name, sys.argv's where None."""
    cli.main(args=argv, prog_name="python -m zrelay_generator")


if __name__ == "__main__":
    main()
