"""`python -m zrelay_encoder`: one encoder process. Torch is loaded only when it serves."""

from pathlib import Path

import click

from zrelay_encoder.config import DEVICES, DTYPES, EncoderConfig
from zrelay_shared import checkpoints, command, paths
from zrelay_shared.limits import DEFAULT_PORTS


@click.command(context_settings={"show_default": True})
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Z-Image pipeline folder, or a bare Qwen3 folder with its tokenizer.",
)
@click.option(
    "--listen",
    default=f"127.0.0.1:{DEFAULT_PORTS['encoder']}",
    metavar="HOST:PORT",
    help="Where to listen; port 0 takes a free one.",
)
@click.option(
    "--insecure-listen", is_flag=True, help="Allow an address that other machines reach; nothing is encrypted."
)
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="auto: cuda, else mps, else cpu.")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", help="Compute dtype; auto says in the log why.")
@click.option(
    "--hidden-layer",
    type=click.IntRange(max=-1),
    default=-2,
    help="Layer of a request that names none; only the blocks it needs are loaded.",
)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads.  [default: all cores but one]")
@click.option("--max-waiting", type=click.IntRange(min=1), default=64, help="Calls that may wait for the device.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option(
    "--grace-s", type=click.FloatRange(min=0), default=30.0, help="Seconds that running calls get on SIGTERM."
)
@click.option(
    "--address-file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="PATH",
    help="Write HOST:PORT there once bound.",
)
def main(
    model: Path, listen: str, insecure_listen: bool, device: str, dtype: str, hidden_layer: int, threads: int | None,
    max_waiting: int, log_level: str, grace_s: float, address_file: Path | None,
) -> None:  # fmt: skip
    """Serve prompt encoding with the text encoder of MODEL."""
    config = EncoderConfig(
        model=model,
        device=device,
        dtype=dtype,
        threads=threads,
        hidden_layer=hidden_layer,
        max_waiting=max_waiting,
        cache=paths.cache_dir(),
    )

    def build() -> object:
        checkpoints.open_text_encoder(model)  # a folder that lacks something is told before torch takes its seconds
        from zrelay_encoder.api.servicer import EncoderServicer

        return EncoderServicer(config)

    raise SystemExit(
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
    main()
