"""`python -m zrelay_vision`: the process of the vision service."""

import sys
from pathlib import Path

import click

from zrelay_shared import command
from zrelay_shared.limits import DEFAULT_PORTS

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), help="Folder of a Qwen3-VL or SigLIP2 checkpoint (not used yet)."
)
@click.option("--listen", default=f"127.0.0.1:{DEFAULT_PORTS['vision']}", show_default=True, help="HOST:PORT.")
@click.option("--insecure-listen", is_flag=True, help="Allow an address beyond this machine, without encryption.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Not used yet.")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Not used yet.")
@click.option("--log-level", default="info", show_default=True, help="debug, info, warning or error.")
@click.option(
    "--grace-s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds that running work gets after SIGTERM.",
)
@click.option("--address-file", type=click.Path(path_type=Path), help="Write HOST:PORT there once bound.")
def main(
    model: Path | None,
    listen: str,
    insecure_listen: bool,
    device: str,
    dtype: str,
    log_level: str,
    grace_s: float,
    address_file: Path | None,
) -> None:
    """Serve the vision service."""

    def build() -> object:
        from zrelay_vision.service import VisionService

        return VisionService()

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


if __name__ == "__main__":
    main(prog_name="python -m zrelay_vision")
