"""`python -m zrelay_vision`: one vision process. Torch is loaded only when it serves."""

from pathlib import Path

import click

from zrelay_shared import command, paths
from zrelay_shared.limits import DEFAULT_PORTS
from zrelay_vision.config import DEVICES, DTYPES, MIB, VisionConfig
from zrelay_vision.folders import engines_in

_DEFAULTS = VisionConfig()
_FOLDER = click.Path(path_type=Path)


@click.command(context_settings={"show_default": True})
@click.option("--qwen3-vl", type=_FOLDER, metavar="DIR", help="Qwen3-VL checkpoint: states of images, conditioning.")
@click.option("--siglip", type=_FOLDER, metavar="DIR", help="SigLIP2 checkpoint: grids for Omni, scores.")
@click.option(
    "--model", type=_FOLDER, metavar="DIR", help="Folder with qwen3_vl/ or siglip/ or both in it, or one of the two."
)
@click.option(
    "--references",
    "--reference-stats",
    "reference_stats",
    type=_FOLDER,
    metavar="DIR",
    help="What `zrelay calibrate` wrote, for per_dim, hybrid, masks.  [default: references/ of the state folder]",
)
@click.option(
    "--listen",
    default=f"127.0.0.1:{DEFAULT_PORTS['vision']}",
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
    default=None,
    help="Qwen3-VL's layer of a request that names none; only the blocks it needs are loaded.  "
    "[default: the checkpoint's zrelay.json, else -6]",
)
@click.option(
    "--max-area",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_area,
    help="Pixels of one image that Qwen3-VL sees; larger ones are scaled down to it.",
)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads.  [default: all cores but one]")
@click.option("--max-waiting", type=click.IntRange(min=1), default=_DEFAULTS.max_waiting, help="Calls that may wait.")
@click.option("--max-images", type=click.IntRange(min=1), default=_DEFAULTS.max_images, help="Images in one call.")
@click.option(
    "--max-image-pixels", type=click.IntRange(min=1), default=_DEFAULTS.max_image_pixels, help="Pixels of one file."
)
@click.option(
    "--image-cache-mib",
    type=click.IntRange(min=0),
    default=_DEFAULTS.image_cache_bytes // MIB,
    help="Files that were sent and may be named by their digest.",
)
@click.option(
    "--state-cache-mib",
    type=click.IntRange(min=0),
    default=_DEFAULTS.state_cache_bytes // MIB,
    help="What Qwen3-VL made of them; an image of a megapixel takes 140 MiB for Qwen3-VL-4B.",
)
@click.option("--log-level", default="info", help="debug, info, warning or error.")
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
    qwen3_vl: Path | None, siglip: Path | None, model: Path | None, reference_stats: Path | None, listen: str,
    insecure_listen: bool, device: str, dtype: str, hidden_layer: int | None, max_area: int, threads: int | None,
    max_waiting: int, max_images: int, max_image_pixels: int, image_cache_mib: int, state_cache_mib: int,
    log_level: str, grace_s: float, address_file: Path | None,
) -> None:  # fmt: skip
    """Read reference images: with Qwen3-VL to condition prompts, with SigLIP2 for Omni and scores.

    Without an engine it still conditions prompts with states that were saved before.
    """

    def build() -> object:
        found = engines_in(model) if model is not None else (None, None)
        config = VisionConfig(
            qwen3_vl=qwen3_vl or found[0],
            siglip=siglip or found[1],
            reference_stats=reference_stats or paths.state_dir() / "references",
            device=device,
            dtype=dtype,
            threads=threads,
            hidden_layer=hidden_layer,
            cache=paths.cache_dir(),
            max_images=max_images,
            max_image_pixels=max_image_pixels,
            max_area=max_area,
            max_waiting=max_waiting,
            image_cache_bytes=image_cache_mib * MIB,
            state_cache_bytes=state_cache_mib * MIB,
        )
        for folder, check in ((config.qwen3_vl, _check_qwen3_vl), (config.siglip, _check_siglip)):
            if folder is not None:
                check(folder)  # a folder that lacks something is told before torch takes its seconds
        from zrelay_vision.api.servicer import VisionServicer

        return VisionServicer(config)

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


def _check_qwen3_vl(folder: Path) -> None:
    from zrelay_vision.qwen3_vl.folder import open_qwen3_vl

    open_qwen3_vl(folder)


def _check_siglip(folder: Path) -> None:
    from zrelay_vision.siglip.folder import open_siglip

    open_siglip(folder)


if __name__ == "__main__":
    main()
