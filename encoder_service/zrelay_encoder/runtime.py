"""Loads a checkpoint and answers parsed requests: formats prompts in one thread, embeds them in another."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.embedding import Embedder, EmbeddingTask, embed_sequences
from zrelay_encoder.model.encoder import Encoder, load_encoder
from zrelay_encoder.prompts.fitting import (
    FittedPrompt,
    TextLimit,
    checkpoint_text_limit,
    fit_prompt,
    resolve_limit,
)
from zrelay_encoder.prompts.formatting import FormattedPrompt, PromptFormatter, PromptInput, load_formatter
from zrelay_shared import checkpoints
from zrelay_shared.errors import FeatureMissing, MessageTooLarge, ModelLoading, invalid
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.layers import LayerPlan
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.service.lifecycle import Readiness
from zrelay_shared.service.worker import DeviceWorker, serving_threads
from zrelay_shared.torch_tensors import FLOAT_DTYPES

_ENVELOPE_BYTES = 1024 * 1024
"""Part of a reply that is kept free for everything but embeddings."""


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """Prompts to encode with the same options. None means the server's default.

    Attributes:
        prompts: The prompts.
        hidden_layer: Index of the hidden layer, negative.
        text_limit: Maximum number of tokens of one prompt.
        refuse_long: Refuse a prompt above the limit instead of truncating it.
        dtype: Dtype of the embeddings, by safetensors' name.
        pad_to: Append pad tokens up to this length.
        deterministic: Make results independent of the other prompts, bit for bit.
    """

    prompts: tuple[PromptInput, ...]
    hidden_layer: int | None = None
    text_limit: int | None = None
    refuse_long: bool = False
    dtype: str = "BF16"
    pad_to: int | None = None
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class FormatRequest:
    """Prompts to format and count, and the limit to compare them with (None for the server's default)."""

    prompts: tuple[PromptInput, ...]
    text_limit: int | None = None


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One encoded prompt.

    Attributes:
        segments: Embeddings [T, width] on the CPU: one tensor, or one for each segment of an Omni prompt.
        fingerprint: What made the embeddings.
        fitted: The token ids, and what was truncated.
        limit: The limit that applied.
        formatted: The formatted text.
    """

    segments: tuple[torch.Tensor, ...]
    fingerprint: EncoderFingerprint
    fitted: FittedPrompt
    limit: TextLimit
    formatted: str


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """The prompts of a request in their order, with the seconds it waited and computed."""

    prompts: tuple[EncodedPrompt, ...]
    queue_seconds: float
    compute_seconds: float


class EncoderRuntime:
    """One checkpoint, one thread for the tokenizer and one for the device.

    Used from one event loop, which it never blocks.

    Attributes:
        config: The settings.
        device: The device worker.
        encoder: The model, None until it is loaded.
    """

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config
        self.device = DeviceWorker("encoder-device", config.max_waiting, share_percent=config.caller_share)
        self.encoder: Encoder | None = None
        self._texts = DeviceWorker("encoder-text", config.max_waiting, share_percent=config.caller_share)
        self._formatter: PromptFormatter | None = None
        self._embedder: Embedder | None = None
        self._checkpoint_limit: int | None = None
        self._readiness = Readiness("encoder")

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self._readiness.ready

    async def load(self) -> None:
        """Loads the tokenizer, then the model, and runs one token through it.

        Raises:
            CheckpointError: The checkpoint is incomplete or damaged.
            FailedPrecondition: The device or dtype is not available.
        """
        folder = (await self._texts.run(lambda: checkpoints.open_text_encoder(self.config.model))).value
        self._checkpoint_limit = checkpoint_text_limit(folder)
        formatter = (await self._texts.run(lambda: load_formatter(folder))).value
        self._formatter = formatter
        tokenizer = (await self._texts.run(formatter.identity)).value

        def load() -> Encoder:
            torch.set_num_threads(serving_threads(self.config.threads))
            encoder = load_encoder(folder, self.config, tokenizer)
            warm_up = EmbeddingTask(((0,),), encoder.model.plan, torch.float32)
            embed_sequences(encoder, warm_up, self.config.batch_tokens)
            return encoder

        encoder = (await self.device.run(load)).value
        for worker in (self._texts, self.device):
            worker.forget()  # the time to load is no measure of the next calls
        self._embedder = Embedder(encoder, self.device, self.config.batch_tokens)
        self.encoder = encoder
        self._readiness.set_loaded()

    def text_limit(self, requested: int | None = None) -> TextLimit:
        """Returns the limit that applies to a request."""
        limit = resolve_limit(requested, self._checkpoint_limit)
        return TextLimit(min(limit.tokens, self.config.max_text_limit), limit.source)

    async def format(self, request: FormatRequest) -> list[FormattedPrompt]:
        """Formats prompts. Needs the tokenizer only. Raises ModelLoading, Draining."""
        return await self._format(self._loaded_formatter(), request.prompts)

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        """Encodes the prompts of a request, all or none.

        Raises:
            ModelLoading, Draining, QueueFull: The encoder does not accept the request now.
            InvalidArgument: PROMPT_TOO_LONG, HIDDEN_LAYER_INVALID, PAD_TO_INVALID, IMAGE_COUNT_INVALID.
            FeatureMissing: The layer needs blocks that are not loaded.
            MessageTooLarge: One reply cannot carry the embeddings.
            OutOfMemory, FailedPrecondition: See `Embedder.embed`.
        """
        formatter, (encoder, embedder) = self._loaded_formatter(), self._loaded_model()
        layer, plan = _layer(encoder, request.hidden_layer)
        limit = self.text_limit(request.text_limit)
        formatted = await self._format(formatter, request.prompts)
        fitted = [
            fit_prompt(
                prompt,
                limit.tokens,
                refuse_long=request.refuse_long,
                pad_to=request.pad_to,
                pad_id=formatter.pad_id,
                field=f"prompts[{index}]",
            )
            for index, prompt in enumerate(formatted)
        ]
        dtype = FLOAT_DTYPES[request.dtype]
        _check_reply(sum(len(prompt.ids) for prompt in fitted), encoder.model.width, dtype)
        sequences = tuple(sequence for prompt in fitted for sequence in prompt.sequences)
        embedded = await embedder.embed(EmbeddingTask(sequences, plan, dtype, request.deterministic))
        embeds = iter(embedded.value)
        prompts = tuple(
            EncodedPrompt(
                tuple(next(embeds) for _ in ids.sequences),
                encoder.fingerprint_of(hidden_layer=layer, think_mode=prompt.think_mode, padded=ids.pads > 0),
                ids,
                limit,
                text.text,
            )
            for prompt, ids, text in zip(request.prompts, fitted, formatted, strict=True)
        )
        return EncodeResult(prompts, embedded.queue_seconds, embedded.compute_seconds)

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests. Returns when none is running, or after `grace_s` seconds."""
        self._readiness.set_draining()
        try:
            await asyncio.wait_for(self.device.drained(), grace_s)
        except TimeoutError:
            return

    async def close(self) -> None:
        """Ends the threads. Waiting calls are dropped."""
        self._readiness.set_draining()
        await self._texts.close()
        await self.device.close()
        self.encoder = self._embedder = self._formatter = None

    def _loaded_model(self) -> tuple[Encoder, Embedder]:
        self._readiness.check()
        if self.encoder is None or self._embedder is None:
            raise RuntimeError("encoder: expected a loaded model, got none")
        return self.encoder, self._embedder

    def _loaded_formatter(self) -> PromptFormatter:
        if self._formatter is not None and not self._readiness.draining:
            return self._formatter
        self._loaded_model()
        raise ModelLoading("this encoder is still loading its tokenizer; try again in a moment")

    async def _format(self, formatter: PromptFormatter, prompts: Sequence[PromptInput]) -> list[FormattedPrompt]:
        return (await self._texts.run(lambda: formatter.format(prompts))).value


def _layer(encoder: Encoder, requested: int | None) -> tuple[int, LayerPlan]:
    """Returns the layer of a request and the blocks it needs. Raises InvalidArgument, FeatureMissing."""
    if requested is None:
        return encoder.fingerprint.hidden_layer, encoder.model.plan
    try:
        plan = encoder.plan(requested)
    except ValueError as error:
        raise invalid("options.hidden_layer", f"{-encoder.model.total_blocks} to -1", requested) from error
    if not plan.within(encoder.model.plan):
        raise FeatureMissing(
            f"options.hidden_layer: {requested} needs more blocks than this encoder loaded for layer "
            f"{encoder.fingerprint.hidden_layer}; start it with --hidden-layer {requested}",
            field="options.hidden_layer",
            metadata={"feature": "encode.layer", "loaded_for": encoder.fingerprint.hidden_layer},
        )
    return requested, plan


def _check_reply(total_tokens: int, width: int, dtype: torch.dtype) -> None:
    """Refuses, before anything is computed, what one message cannot carry."""
    size, limit = total_tokens * width * dtype.itemsize, MAX_MESSAGE_BYTES - _ENVELOPE_BYTES
    if size > limit:
        raise MessageTooLarge(
            f"prompts: expected embeddings of at most {limit} bytes, which one reply carries, got {size}; send fewer "
            "prompts per call",
            field="prompts",
            metadata={"bytes": size, "max_bytes": limit},
        )
