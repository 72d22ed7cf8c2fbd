"""Muon for hidden matrices and AdamW for other parameters, in one optimiser whose state can be saved and resumed."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration of Keller Jordan's Muon (github.com/KellerJordan/Muon)."""


@torch.no_grad()
def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Returns roughly the nearest semi-orthogonal matrices, with singular values near 1; float32 [N, rows, columns]."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT.bfloat16() if tall else matrices.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).float()
    return result


class MuonAdam:
    """An optimiser for two groups of parameters."""

    def __init__(
        self, matrices: Iterable[Tensor], others: Iterable[Tensor], lr_matrices: float, lr_others: float
    ) -> None:
        """Creates an optimiser.

        Args:
            matrices: Parameters for Muon; convolution kernels are treated as matrices [out, in * h * w].
            others: Parameters for AdamW.
            lr_matrices: Muon's learning rate.
            lr_others: AdamW's learning rate.
        """
        self._lr_matrices, self._lr_others, self._momentum = lr_matrices, lr_others, 0.95
        by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for parameter in matrices:
            by_shape[parameter.shape[0], parameter.numel() // parameter.shape[0]].append(parameter)
        self._groups = list(by_shape.items())
        self._momenta = [torch.zeros(len(group), *shape) for shape, group in self._groups]
        self._others = list(others)
        self._mean = [torch.zeros_like(p) for p in self._others]
        self._square = [torch.zeros_like(p) for p in self._others]
        self._count = [torch.zeros(()) for _ in self._others]

    def zero_grad(self) -> None:
        """Deletes all gradients."""
        for parameter in [p for _, group in self._groups for p in group] + self._others:
            parameter.grad = None

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Updates every parameter from its gradient; `factor` scales both learning rates."""
        self._step_adam(factor * self._lr_others)
        for (shape, group), momentum in zip(self._groups, self._momenta, strict=True):
            grads = torch.stack([_grad(p).reshape(shape) for p in group]).float()
            momentum.lerp_(grads, 1 - self._momentum)
            updates = orthogonalise(grads.lerp(momentum, self._momentum))
            scale = max(1.0, shape[0] / shape[1]) ** 0.5 * self._lr_matrices * factor
            for parameter, update in zip(group, updates, strict=True):
                parameter.add_(update.view_as(parameter), alpha=-scale)

    def state(self) -> dict[str, Tensor]:
        """Returns all tensors that a resumed training needs, by name."""
        named = {f"muon.{i}": m for i, m in enumerate(self._momenta)}
        for name, tensors in (("mean", self._mean), ("square", self._square), ("count", self._count)):
            named |= {f"adam.{name}.{i}": tensor for i, tensor in enumerate(tensors)}
        return named

    def _step_adam(self, lr: float) -> None:
        torch._foreach_add_(self._count, 1)
        torch._fused_adamw_(
            self._others,
            [_grad(p) for p in self._others],
            self._mean,
            self._square,
            [],
            self._count,
            lr=lr,
            beta1=0.9,
            beta2=0.98,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


def _grad(parameter: Tensor) -> Tensor:
    """Returns a parameter's gradient, zeros if it has none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
