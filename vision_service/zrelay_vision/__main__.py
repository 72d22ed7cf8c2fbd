"""`python -m zrelay_vision`: one vision process. Torch is imported only when it serves."""

from typing import TYPE_CHECKING

from zrelay_shared.service.command import service_command
from zrelay_shared.service.roles import VisionConfig
from zrelay_shared.vision_folders import with_engines

if TYPE_CHECKING:
    from zrelay_vision.api.servicer import VisionServicer


def build(config: VisionConfig) -> "VisionServicer":
    """Finds and checks the engines' folders and makes the service. Raises CheckpointError."""
    config = with_engines(config)
    # Refuses an incomplete folder before torch takes seconds to import.
    if config.qwen3_vl is not None:
        from zrelay_vision.qwen3_vl.folder import open_qwen3_vl

        open_qwen3_vl(config.qwen3_vl)
    if config.siglip is not None:
        from zrelay_vision.siglip.folder import open_siglip

        open_siglip(config.siglip)
    from zrelay_vision.api.servicer import VisionServicer

    return VisionServicer(config)


main = service_command(
    VisionConfig,
    build,
    help="Read reference images: with Qwen3-VL to condition prompts, with SigLIP2 for Omni and scores. Without an "
    "engine it conditions prompts with states that were saved before.",
)

if __name__ == "__main__":
    main()
