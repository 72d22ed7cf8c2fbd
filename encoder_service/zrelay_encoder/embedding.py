"""Computes embeddings of token sequences: decides which sequences share a forward pass, and runs the model.

`runtime` above it handles prompts, `model` below it handles tensors. Batching across callers and an embedding cache
belong in `Embedder.embed` (see the package's docstring).
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from zrelay_encoder.model.encoder import Encoder
from zrelay_shared import torch_devices
from zrelay_shared.errors import Cancelled, FailedPrecondition
from zrelay_shared.layers import LayerPlan
from zrelay_shared.service.worker import DeviceWorker, Timed
from zrelay_shared.torch_tensors import all_finite, overflow_remedy


@dataclass(frozen=True, slots=True)
class EmbeddingTask:
    """Token sequences to embed, and everything that their embeddings depend on besides the model.

    Attributes:
        sequences: Token ids; each sequence is encoded on its own.
        plan: The blocks to run.
        dtype: Dtype of the embeddings.
        deterministic: Run each sequence alone, so that its result is bitwise independent of the others.
    """

    sequences: tuple[tuple[int, ...], ...]
    plan: LayerPlan
    dtype: torch.dtype
    deterministic: bool = False


class Embedder:
    """Computes embeddings with one encoder on one device worker."""

    def __init__(self, encoder: Encoder, worker: DeviceWorker, batch_tokens: int) -> None:
        """Creates an embedder; it starts no thread.

        Args:
            encoder: The loaded model.
            worker: Runs the forward passes, one call at a time.
            batch_tokens: Maximum number of tokens in one forward pass; a longer sequence runs alone.
        """
        self._encoder, self._worker, self._batch_tokens = encoder, worker, batch_tokens

    async def embed(self, task: EmbeddingTask) -> Timed[list[torch.Tensor]]:
        """Embeds the sequences of a task, all or none.

        A cancelled caller stops the computation before the next forward pass.

        Returns:
            One tensor [T, width] per sequence on the CPU, with the seconds waited and computed.

        Raises:
            QueueFull: Too many calls are waiting.
            OutOfMemory: A forward pass does not fit the device.
            FailedPrecondition: STATES_NOT_FINITE.
        """
        cancelled = threading.Event()

        def compute() -> list[torch.Tensor]:
            return embed_sequences(self._encoder, task, self._batch_tokens, cancelled=cancelled.is_set)

        try:
            return await self._worker.run(compute)
        except asyncio.CancelledError:
            cancelled.set()
            raise


def embed_sequences(
    encoder: Encoder, task: EmbeddingTask, batch_tokens: int, *, cancelled: Callable[[], bool] = lambda: False
) -> list[torch.Tensor]:
    """Embeds the sequences of a task in batches, in the calling thread.

    Args:
        encoder: The loaded model.
        task: What to embed.
        batch_tokens: Maximum number of tokens in one forward pass.
        cancelled: Checked before every forward pass.

    Returns:
        One tensor [T, width] per sequence, in the task's dtype on the CPU.

    Raises:
        Cancelled: `cancelled` returned True.
        OutOfMemory: A forward pass does not fit the device.
        FailedPrecondition: A value overflows the dtype (STATES_NOT_FINITE).
    """
    embeds: list[torch.Tensor] = []
    budget = 1 if task.deterministic else batch_tokens
    for start, end in batch_ranges([len(ids) for ids in task.sequences], budget):
        if cancelled():
            raise Cancelled("the caller cancelled the call")
        embeds += [states.to(task.dtype).cpu() for states in encoder.forward(task.sequences[start:end], task.plan)]
    if not all(all_finite(rows) for rows in embeds):
        computed, requested = encoder.fingerprint.compute_dtype, torch_devices.dtype_name(task.dtype)
        raise FailedPrecondition(
            f"the hidden states overflow: computed in {computed}, requested in {requested}; "
            f"{overflow_remedy('encoder', computed, requested)}",
            reason="STATES_NOT_FINITE",
        )
    return embeds


def batch_ranges(lengths: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """Yields ranges of consecutive sequences with at most `budget` tokens in total; a longer sequence runs alone."""
    start = total = 0
    for index, length in enumerate(lengths):
        if index > start and total + length > budget:
            yield start, index
            start, total = index, 0
        total += length
    if lengths:
        yield start, len(lengths)
