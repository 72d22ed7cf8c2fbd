"""What a parsed call asks for, in this service's own types."""

from dataclasses import dataclass

from zrelay_encoder.omni import OmniPrompt
from zrelay_encoder.template import Conversation

Asked = Conversation | OmniPrompt
"""One prompt of a call."""


@dataclass(frozen=True, slots=True)
class EncodeCall:
    """Prompts to encode, all the same way.

    None means the server's default. `dtype` is of the embeddings, by safetensors' name; `refuse_long` refuses a prompt
    over the limit where otherwise it is truncated; `pad_to` keeps pad tokens up to that many.
    """

    prompts: tuple[Asked, ...]
    hidden_layer: int | None = None
    text_limit: int | None = None
    refuse_long: bool = False
    dtype: str = "BF16"
    pad_to: int | None = None
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class FormatCall:
    """Prompts to format and count against a limit."""

    prompts: tuple[Asked, ...]
    text_limit: int | None = None
