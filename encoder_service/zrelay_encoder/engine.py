"""The encoder behind its queue: loads in the background, formats in one thread, computes in another."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zrelay_encoder import identity, tokens
from zrelay_encoder.calls import Asked, EncodeCall, FormatCall
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.encoder import (
    Encoder,
    FormattedPrompt,
    PromptFormatter,
    checkpoint_text_limit,
    load_encoder,
    load_formatter,
)
from zrelay_encoder.omni import fit_omni
from zrelay_shared import checkpoints
from zrelay_shared.errors import FeatureMissing, InvalidArgument, MessageTooLarge, ModelLoading
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.layers import LayerPlan
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.service.lifecycle import Readiness
from zrelay_shared.service.worker import DeviceWorker, serving_threads
from zrelay_shared.torch_tensors import FLOAT_DTYPES

_ENVELOPE_BYTES = 1024 * 1024
"""Room in a reply for all that is not embeddings."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One prompt's embeddings on the CPU, [T, width] for each of its segments, what made them, and what happened on
    the way."""

    segments: tuple[torch.Tensor, ...]
    fingerprint: EncoderFingerprint
    fitted: tokens.TokenisedPrompt
    limit: tokens.TextLimit
    formatted: str


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """A call's prompts in their order, with the seconds it waited and ran."""

    prompts: tuple[EncodedPrompt, ...]
    queue_seconds: float
    compute_seconds: float


class EncoderEngine:
    """One model, one device thread. Used from one event loop; it never blocks it."""

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config
        self.device = DeviceWorker("encoder-device", config.max_waiting)
        self.encoder: Encoder | None = None
        self._texts = DeviceWorker("encoder-text", config.max_waiting)
        self._formatter: PromptFormatter | None = None
        self._checkpoint_limit: int | None = None
        self._readiness = Readiness("encoder")

    @property
    def ready(self) -> bool:
        """Whether calls are taken."""
        return self._readiness.ready

    async def load(self) -> None:
        """The tokenizer, then the model, and one warm-up run. Raises CheckpointError, FailedPrecondition."""
        folder = (await self._texts.run(lambda: checkpoints.open_text_encoder(self.config.model))).value
        self._checkpoint_limit = checkpoint_text_limit(folder)
        self._formatter = (await self._texts.run(lambda: load_formatter(folder))).value

        def load() -> Encoder:
            torch.set_num_threads(serving_threads(self.config.threads))
            encoder = load_encoder(folder, self.config)
            encoder.encode([[0]], encoder.model.plan, torch.float32)
            return encoder

        encoder = (await self.device.run(load)).value
        for worker in (self._texts, self.device):
            worker.forget()  # a load of a minute is no ground for a caller's retry hint
        self.encoder = encoder
        self._readiness.set_loaded()

    def text_limit(self, requested: int | None = None) -> tokens.TextLimit:
        """The limit that applies to a request."""
        limit = tokens.resolve_limit(requested, self._checkpoint_limit)
        return tokens.TextLimit(min(limit.tokens, self.config.max_text_limit), limit.source)

    async def format(self, call: FormatCall) -> list[FormattedPrompt]:
        """The formatted prompts. Needs the tokenizer alone. Raises ModelLoading, Draining."""
        return await self._format(self._texts_ready(), call.prompts)

    async def encode(self, call: EncodeCall) -> EncodeResult:
        """The encoded prompts, all or none.

        Raises ModelLoading, Draining, QueueFull, InvalidArgument (PROMPT_TOO_LONG, HIDDEN_LAYER_INVALID,
        PAD_TO_INVALID), FeatureMissing (a layer that is not loaded), MessageTooLarge.
        """
        formatter, encoder = self._texts_ready(), self._ready()
        layer, plan = _layer(encoder, call.hidden_layer)
        limit = self.text_limit(call.text_limit)
        formatted = await self._format(formatter, call.prompts)
        fitted = [_fit(prompt, limit, call, formatter.pad_id, f"prompts[{at}]") for at, prompt in enumerate(formatted)]
        dtype = FLOAT_DTYPES[call.dtype]
        _check_reply(sum(len(prompt.ids) for prompt in fitted), encoder.model.width, dtype)
        gone = threading.Event()

        def compute() -> list[torch.Tensor]:
            ids = [sequence for prompt in fitted for sequence in prompt.sequences]
            return encoder.encode(ids, plan, dtype, deterministic=call.deterministic, cancelled=gone.is_set)

        try:
            timed = await self.device.run(compute)
        except asyncio.CancelledError:
            gone.set()
            raise
        embeds = iter(timed.value)
        prompts = tuple(
            EncodedPrompt(
                tuple(next(embeds) for _ in ids.sequences),
                identity.of_request(
                    encoder.fingerprint, hidden_layer=layer, think_mode=asked.think_mode, padded=ids.pads > 0
                ),
                ids,
                limit,
                text.text,
            )
            for asked, ids, text in zip(call.prompts, fitted, formatted, strict=True)
        )
        return EncodeResult(prompts, timed.queue_seconds, timed.compute_seconds)

    async def drain(self, grace_s: float) -> None:
        """No new calls from now on; returns when none runs, or after `grace_s`."""
        self._readiness.set_draining()
        try:
            await asyncio.wait_for(self.device.drained(), grace_s)
        except TimeoutError:
            return

    async def close(self) -> None:
        """Ends the threads; what waits is dropped."""
        self._readiness.set_draining()
        await self._texts.close()
        await self.device.close()
        self.encoder = self._formatter = None

    def _ready(self) -> Encoder:
        self._readiness.check()
        if self.encoder is None:
            raise RuntimeError("encoder: expected a loaded model, got none")
        return self.encoder

    def _texts_ready(self) -> PromptFormatter:
        if self._formatter is not None and not self._readiness.draining:
            return self._formatter
        self._ready()
        raise ModelLoading("this encoder is still loading its tokenizer: try again in a moment")

    async def _format(self, formatter: PromptFormatter, prompts: Sequence[Asked]) -> list[FormattedPrompt]:
        return (await self._texts.run(lambda: formatter.format(prompts))).value


def _fit(
    prompt: FormattedPrompt, limit: tokens.TextLimit, call: EncodeCall, pad_id: int, path: str
) -> tokens.TokenisedPrompt:
    """The prompt held to the limit and padded, as the call wants it. Raises InvalidArgument."""
    if call.refuse_long and not prompt.fits(limit.tokens):
        raise InvalidArgument(
            f"{path}: expected at most {limit.tokens} tokens, got {len(prompt.ids)}: shorten it, or let it be "
            "truncated (long_prompt_mode)",
            field=path,
            reason="PROMPT_TOO_LONG",
            metadata={"tokens": len(prompt.ids), "text_limit": limit.tokens},
        )
    fitted = _held(prompt, limit, path)
    if call.pad_to is None:
        return fitted
    if call.pad_to > limit.tokens:
        raise InvalidArgument(
            f"options.pad_to: expected at most the limit of {limit.tokens} tokens, got {call.pad_to}",
            field="options.pad_to",
            reason="PAD_TO_INVALID",
        )
    return tokens.pad(fitted, call.pad_to, pad_id)


def _held(prompt: FormattedPrompt, limit: tokens.TextLimit, path: str) -> tokens.TokenisedPrompt:
    """The prompt held to the limit. Raises InvalidArgument where its images leave no room for words."""
    if not prompt.segments:
        return tokens.fit(prompt.ids, limit.tokens)
    try:
        return fit_omni(prompt.ids, prompt.segments, limit.tokens)
    except ValueError as error:
        raise InvalidArgument(
            f"{path}.image_count: {error}; ask for a larger text_limit or fewer images",
            field=f"{path}.image_count",
            reason="IMAGE_COUNT_INVALID",
        ) from error


def _layer(encoder: Encoder, wanted: int | None) -> tuple[int, LayerPlan]:
    """The layer of a request and what runs for it. Raises InvalidArgument, FeatureMissing."""
    if wanted is None:
        return encoder.fingerprint.hidden_layer, encoder.model.plan
    try:
        plan = encoder.plan(wanted)
    except ValueError as error:
        raise InvalidArgument(
            f"options.{error}", field="options.hidden_layer", reason="HIDDEN_LAYER_INVALID", metadata={"got": wanted}
        ) from error
    if not plan.within(encoder.model.plan):
        raise FeatureMissing(
            f"options.hidden_layer: {wanted} needs more than this encoder loaded for layer "
            f"{encoder.fingerprint.hidden_layer}; start it with --hidden-layer {wanted}",
            field="options.hidden_layer",
            metadata={"feature": "encode.layer", "loaded_for": encoder.fingerprint.hidden_layer},
        )
    return wanted, plan


def _check_reply(total_tokens: int, width: int, dtype: torch.dtype) -> None:
    """Refuse before computing what one message cannot carry."""
    size, room = total_tokens * width * dtype.itemsize, MAX_MESSAGE_BYTES - _ENVELOPE_BYTES
    if size > room:
        raise MessageTooLarge(
            f"prompts: their embeddings take {size} bytes, one reply carries {room}: send fewer prompts a call",
            field="prompts",
            metadata={"bytes": size, "max_bytes": room},
        )
