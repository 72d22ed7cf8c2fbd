"""The loop all training stages share: averaged weights, progress with ETA, and a state from which to resume."""

import json
import time
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .muon import MuonAdam

Metrics = dict[str, float]
Loss = Callable[[int], tuple[Tensor, Metrics]]


@dataclass(frozen=True)
class Pace:
    """How long a stage trains, and how often it tells and saves."""

    steps: int
    ema_decay: float
    log_every: int = 50
    save_every: int = 250


class TrainingSettings(Protocol):
    """A stage's dataclass of settings."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def pace(self) -> Pace: ...


class Trainee:
    """Named parameters, their moving average and their optimiser."""

    def __init__(self, parameters: dict[str, Tensor], optimiser: MuonAdam) -> None:
        self.parameters = parameters
        self.optimiser = optimiser
        self.average = {name: value.detach().clone() for name, value in parameters.items()}

    def tensors(self) -> dict[str, Tensor]:
        named = {f"weight.{name}": value.detach() for name, value in self.parameters.items()}
        named |= {f"average.{name}": value for name, value in self.average.items()}
        return named | self.optimiser.state()

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the average towards the weights."""
        averages = list(self.average.values())
        torch._foreach_lerp_(averages, [p.detach() for p in self.parameters.values()], 1 - decay)

    @torch.no_grad()
    def adopt_average(self) -> None:
        """Replace the weights by their average."""
        for name, value in self.parameters.items():
            value.copy_(self.average[name])


def train(
    trainee: Trainee,
    loss_of: Loss,
    factor_of: Callable[[int], float],
    settings: TrainingSettings,
    folder: Path,
    stop: int | None = None,
) -> dict[str, Any] | None:
    """Train to `settings.pace.steps` and return the history, or return None after an early end at step `stop`.

    Each step must draw its randomness from its own number, so that a resumed run equals an uninterrupted one. Raises
    ValueError where `folder` holds the state of a training with other settings.
    """
    pace, stamp = settings.pace, json.dumps(asdict(settings), sort_keys=True)
    step, history = _resume(trainee, folder, stamp)
    began, first, recent = time.monotonic(), step, []
    spent = history["seconds"]
    while step < pace.steps:
        if stop is not None and step >= stop:
            history["seconds"] = spent + time.monotonic() - began
            _save(trainee, folder, step, history, stamp)
            return None
        loss, metrics = loss_of(step)
        trainee.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters.values(), 1.0)
        trainee.optimiser.step(factor_of(step))
        trainee.follow(min(pace.ema_decay, (step + 1) / (step + 10)))
        recent.append(metrics)
        step += 1
        history["seconds"] = spent + time.monotonic() - began
        if step % pace.log_every == 0 or step == pace.steps:
            each = (time.monotonic() - began) / (step - first)
            means = {key: sum(item[key] for item in recent) / len(recent) for key in recent[0]}
            recent.clear()
            history["log"].append({"step": step, **{key: round(value, 5) for key, value in means.items()}})
            told = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
            left = each * (pace.steps - step) / 60
            print(f"  {step}/{pace.steps}  {told}  {each:.2f} s/step, {left:.1f} min left", flush=True)
        if step % pace.save_every == 0:
            _save(trainee, folder, step, history, stamp)
    trainee.adopt_average()
    return history


def forget(folder: Path) -> None:
    """Delete the training state once the stage's output is complete."""
    (folder / "state.safetensors").unlink(missing_ok=True)


def _save(trainee: Trainee, folder: Path, step: int, history: dict[str, Any], settings: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "state.partial"
    tensors = {name: value.contiguous() for name, value in trainee.tensors().items()}
    save_file(tensors, fresh, metadata={"step": str(step), "history": json.dumps(history), "settings": settings})
    fresh.replace(folder / "state.safetensors")


def _resume(trainee: Trainee, folder: Path, settings: str) -> tuple[int, dict[str, Any]]:
    path = folder / "state.safetensors"
    if not path.exists():
        return 0, {"seconds": 0.0, "log": []}
    with safe_open(path, framework="pt") as state:
        metadata = state.metadata()
        if metadata.get("settings") != settings:
            raise ValueError(
                f"{path}: expected a training with settings {settings}, got {metadata.get('settings')}; "
                "delete the file to begin anew"
            )
        with torch.no_grad():
            for name, tensor in trainee.tensors().items():
                tensor.copy_(state.get_tensor(name))
    print(f"  resumed at step {metadata['step']}", flush=True)
    return int(metadata["step"]), json.loads(metadata["history"])
