"""`python -m zrelay_generator`: one generator process. Torch is imported only when it serves."""

from typing import TYPE_CHECKING

from zrelay_shared import checkpoints
from zrelay_shared.service.command import service_command
from zrelay_shared.service.roles import GeneratorConfig

if TYPE_CHECKING:
    from zrelay_generator.service import GeneratorServicer


def build(config: GeneratorConfig) -> "GeneratorServicer":
    """Checks the model's folder and makes the service. Raises CheckpointError."""
    # Refuses an incomplete folder before torch and diffusers take seconds to import.
    pipeline = checkpoints.open_pipeline(config.model)
    for name in ("transformer", "vae", "scheduler"):
        pipeline.component(name)
    from zrelay_generator.service import GeneratorServicer

    return GeneratorServicer(config)


main = service_command(GeneratorConfig, build, help="Turn prompt_embeds into images with the transformer of a model.")

if __name__ == "__main__":
    main()
