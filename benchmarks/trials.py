"""What the engine does not do: each trial is a forward of the same segments in another way, for as long as it lasts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

import torch

from zrelay_generator.model import transformer as module
from zrelay_generator.model.blocks import run_block
from zrelay_generator.model.transformer import PackedTransformer, Segment

Work = Callable[[], object]


@contextmanager
def compiled(transformer: PackedTransformer, segments: Sequence[Segment]) -> Iterator[Work]:
    """Every block by torch.compile, for any number of tokens."""
    fast = torch.compile(run_block, dynamic=True)
    with mock.patch.object(module, "run_block", fast):
        yield lambda: transformer.forward(segments)


@contextmanager
def graphed(transformer: PackedTransformer, segments: Sequence[Segment]) -> Iterator[Work]:
    """The whole forward as one CUDA graph: what launches cost. Raises RuntimeError without CUDA."""
    if not torch.cuda.is_available():
        raise RuntimeError("graph: expected a CUDA device, got none: leave it out of --try")
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                transformer.forward(segments)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            transformer.forward(segments)
    yield graph.replay


TRIALS: dict[str, Callable[[PackedTransformer, Sequence[Segment]], AbstractContextManager[Work]]] = {
    "compile": compiled,
    "graph": graphed,
}
