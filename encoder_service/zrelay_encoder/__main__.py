"""`python -m zrelay_encoder`: one encoder process. Torch is imported only when it serves."""

from typing import TYPE_CHECKING

from zrelay_shared import checkpoints
from zrelay_shared.service.command import service_command
from zrelay_shared.service.roles import EncoderConfig

if TYPE_CHECKING:
    from zrelay_encoder.api.servicer import EncoderServicer


def build(config: EncoderConfig) -> "EncoderServicer":
    """Checks the model's folder and makes the service. Raises CheckpointError."""
    checkpoints.open_text_encoder(config.model)  # refuses an incomplete folder before torch takes seconds to import
    from zrelay_encoder.api.servicer import EncoderServicer

    return EncoderServicer(config)


main = service_command(EncoderConfig, build, help="Serve prompt encoding with the text encoder of a model.")

if __name__ == "__main__":
    main()
