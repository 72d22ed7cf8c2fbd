"""A loaded encoder: formats, counts and encodes prompts. No messages, no event loop."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from transformers import PreTrainedTokenizerBase

from zrelay_encoder import identity, loading, tokens
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.model import TextEncoder
from zrelay_encoder.omni import OmniPrompt, omni_segments
from zrelay_encoder.template import Conversation, format_prompt, of_prompt
from zrelay_shared import checkpoints, torch_devices
from zrelay_shared.errors import Cancelled, CheckpointError, FailedPrecondition, OutOfMemory
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.layers import LayerPlan, layer_plan
from zrelay_shared.omni import fits
from zrelay_shared.torch_tensors import all_finite

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FormattedPrompt:
    """The text that is tokenised, and all its token ids; `segments` how many belong to each segment of an Omni prompt,
    which are tokenised one by one."""

    text: str
    ids: tuple[int, ...]
    segments: tuple[int, ...] = ()

    def fits(self, limit: int) -> bool:
        """Whether a generator that takes ordinary prompts of `limit` tokens takes all of it."""
        return fits(self.segments, limit) if self.segments else len(self.ids) <= limit


class PromptFormatter:
    """The tokenizer with its chat template. One thread at a time: tokenizers keep state between calls."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id or 0)

    def format(self, prompts: Sequence[Conversation | OmniPrompt]) -> list[FormattedPrompt]:
        """Each prompt formatted and tokenised, neither cut nor padded."""
        texts = [self._texts(prompt) for prompt in prompts]
        ids = iter(tokens.tokenise(self._tokenizer, [text for own in texts for text in own]))
        return [_formatted(own, [next(ids) for _ in own]) for own in texts]

    def _texts(self, prompt: Conversation | OmniPrompt) -> list[str]:
        if isinstance(prompt, OmniPrompt):
            return omni_segments(prompt)
        return [format_prompt(self._tokenizer, prompt)]


def _formatted(texts: Sequence[str], ids: Sequence[Sequence[int]]) -> FormattedPrompt:
    segments = tuple(map(len, ids)) if len(ids) > 1 else ()
    return FormattedPrompt("".join(texts), tuple(chain.from_iterable(ids)), segments)


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
        Raises Cancelled between two forwards, OutOfMemory, and FailedPrecondition (STATES_NOT_FINITE) where the dtype
        overflows.
        """
        embeds: list[torch.Tensor] = []
        exhausted: OutOfMemory | None = None
        for start, end in batches([len(ids) for ids in prompts], 1 if deterministic else self.batch_tokens):
            if cancelled():
                raise Cancelled("the caller went away")
            try:
                states = self.model(prompts[start:end], plan)
            except (RuntimeError, MemoryError) as error:
                if not torch_devices.is_out_of_memory(error):
                    raise
                exhausted = _out_of_memory(prompts[start:end], self.device)
                break
            embeds += [state.to(dtype).cpu() for state in states]
        if exhausted is not None:
            # Only here: while an exception is handled, its frames hold the tensors that did not fit.
            torch_devices.release_cached_memory(self.device)
            raise exhausted
        if not all(all_finite(rows) for rows in embeds):
            raise FailedPrecondition(
                f"the hidden states overflow: computed in {self.fingerprint.compute_dtype}, asked for in "
                f"{torch_devices.dtype_name(dtype)}; ask for bfloat16, and start the encoder with --dtype bfloat16 or "
                "float32",
                reason="STATES_NOT_FINITE",
            )
        return embeds


def _out_of_memory(prompts: Sequence[Sequence[int]], device: torch.device) -> OutOfMemory:
    """The refusal of a forward that did not fit: half of it would need about half the memory."""
    count, found = sum(map(len, prompts)), torch_devices.report(device)
    return OutOfMemory(
        f"{count} tokens in one forward need more memory than {found.kind} has: {found.memory_free_bytes >> 20} of "
        f"{found.memory_total_bytes >> 20} MiB are free; set text_limit to at most about {max(1, count // 2)}, or send "
        "fewer prompts a call",
        metadata={"tokens": count, "fits_tokens": max(1, count // 2), "free_bytes": found.memory_free_bytes},
    )


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
    """The formatter of an opened checkpoint, tried once: seconds before its model. Raises CheckpointError."""
    formatter = PromptFormatter(loading.load_tokenizer(folder.tokenizer, folder.chat_template))
    try:
        formatter.format([of_prompt("a")])
    except Exception as error:  # a template is a program: it fails in any way it likes
        raise CheckpointError(
            f"{folder.tokenizer.name}: its chat template cannot format a prompt ({type(error).__name__}: {error}); "
            "copy it again from the checkpoint"
        ) from error
    return formatter


def load_encoder(folder: checkpoints.TextEncoderFolder, config: EncoderConfig) -> Encoder:
    """The model of an opened checkpoint, identified. Raises CheckpointError, FailedPrecondition, OutOfMemory."""
    device = torch_devices.pick_device(config.device)
    stored = torch_devices.stored_dtype(folder.component.weights)
    dtype, why = torch_devices.pick_dtype(config.dtype, device, stored)
    log.info("computing in %s on %s: %s", torch_devices.dtype_name(dtype), device.type, why)
    try:
        model = loading.load_model(folder.component, config.hidden_layer, device, dtype)
    except ValueError as error:
        raise CheckpointError(f"--{str(error).replace('hidden_layer', 'hidden-layer', 1)}") from error
    except (RuntimeError, MemoryError) as error:
        if not torch_devices.is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"text_encoder/ needs more memory than {device.type} has; use another --device, or --dtype bfloat16"
        ) from error
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
