"""A loaded encoder: formats, counts and encodes prompts. No messages, no event loop."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from zrelay_encoder import identity, loading, tokens
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.model import LayerPlan, TextEncoder, layer_plan
from zrelay_encoder.template import Conversation, format_prompt
from zrelay_shared import checkpoints, torch_devices
from zrelay_shared.errors import Cancelled, CheckpointError, FailedPrecondition
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.torch_tensors import all_finite

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FormattedPrompt:
    """The text that is tokenised, and all its token ids."""

    text: str
    ids: tuple[int, ...]


class PromptFormatter:
    """The tokenizer with its chat template. One thread at a time: tokenizers keep state between calls."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id or 0)

    def format(self, prompts: Sequence[Conversation]) -> list[FormattedPrompt]:
        """Each prompt formatted and tokenised, neither cut nor padded."""
        texts = [format_prompt(self._tokenizer, prompt) for prompt in prompts]
        return [
            FormattedPrompt(text, tuple(ids))
            for text, ids in zip(texts, tokens.tokenise(self._tokenizer, texts), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model ready to run with what identifies it. `formatter` and `text_limit` come from the same checkpoint."""

    model: TextEncoder
    fingerprint: EncoderFingerprint
    device: torch.device
    batch_tokens: int

    def plan(self, hidden_layer: int) -> LayerPlan:
        """What runs for a layer. Raises ValueError for one that the checkpoint has not."""
        return layer_plan(self.model.total_blocks, hidden_layer)

    def encode(
        self,
        prompts: Sequence[Sequence[int]],
        plan: LayerPlan,
        dtype: torch.dtype,
        *,
        deterministic: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[torch.Tensor]:
        """prompt_embeds of each prompt's ids: [T, width] in `dtype` on the CPU, in the order given.

        `deterministic` runs each prompt alone, so that an answer is bitwise the same whatever shares the call.
        Raises Cancelled between two forwards, and FailedPrecondition (STATES_NOT_FINITE) where the dtype overflows.
        """
        embeds: list[torch.Tensor] = []
        for start, end in batches([len(ids) for ids in prompts], 1 if deterministic else self.batch_tokens):
            if cancelled():
                raise Cancelled("the caller went away")
            states = self.model(prompts[start:end], plan)
            embeds += [state.to(dtype).cpu() for state in states]
        if not all(all_finite(rows) for rows in embeds):
            raise FailedPrecondition(
                f"the hidden states overflow: computed in {self.fingerprint.compute_dtype}, asked for in "
                f"{torch_devices.dtype_name(dtype)}; ask for bfloat16, and start the encoder with --dtype bfloat16 or "
                "float32",
                reason="STATES_NOT_FINITE",
            )
        return embeds


def batches(lengths: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive prompts that have at most `budget` tokens together; a longer one stands alone."""
    start = total = 0
    for at, length in enumerate(lengths):
        if at > start and total + length > budget:
            yield start, at
            start, total = at, 0
        total += length
    if lengths:
        yield start, len(lengths)


def load_formatter(folder: checkpoints.TextEncoderFolder) -> PromptFormatter:
    """The formatter of an opened checkpoint: seconds before its model. Raises CheckpointError."""
    return PromptFormatter(loading.load_tokenizer(folder.tokenizer, folder.chat_template))


def load_encoder(folder: checkpoints.TextEncoderFolder, config: EncoderConfig) -> Encoder:
    """The model of an opened checkpoint with its fingerprint. Raises CheckpointError, FailedPrecondition."""
    device = torch_devices.pick_device(config.device)
    stored = torch_devices.stored_dtype(folder.component.weights)
    dtype, why = torch_devices.pick_dtype(config.dtype, device, stored)
    log.info("computing in %s on %s: %s", torch_devices.dtype_name(dtype), device.type, why)
    try:
        model = loading.load_model(folder.component, config.hidden_layer, device, dtype)
    except ValueError as error:
        raise CheckpointError(f"--{str(error).replace('hidden_layer', 'hidden-layer', 1)}") from error
    log.info("loaded %d of %d blocks, for hidden layer %d", model.plan.blocks, model.total_blocks, config.hidden_layer)
    fingerprint = identity.identify(
        folder,
        model_id=checkpoints.model_id(config.model),
        width=model.width,
        hidden_layer=config.hidden_layer,
        device=device,
        dtype=dtype,
        cache=config.cache,
    )
    return Encoder(model, fingerprint, device, config.batch_tokens)


def checkpoint_text_limit(folder: checkpoints.TextEncoderFolder) -> int | None:
    """Tokens that the transformer beside this encoder takes; None where there is none. Raises CheckpointError."""
    if folder.transformer_config is None:
        return None
    lens = folder.transformer_config.get("axes_lens")
    if not isinstance(lens, list) or not lens or not isinstance(lens[0], int):
        raise CheckpointError(f"transformer/config.json says axes_lens {lens!r}, expected a list of lengths")
    try:
        return checkpoints.text_limit(lens)
    except ValueError as error:
        raise CheckpointError(f"transformer/config.json: {error}") from error
