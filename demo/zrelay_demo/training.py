"""The training loop of all stages: weight averaging, progress output, and a saved state from which training resumes."""

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
"""Step number -> the step's loss and the values to log."""


@dataclass(frozen=True)
class LoopSettings:
    """Length of a training and how often it logs and saves.

    Attributes:
        steps: Number of optimiser steps.
        ema_decay: Decay of the moving average of the weights.
        log_every: Steps between two log entries.
        save_every: Steps between two saved states.
    """

    steps: int
    ema_decay: float
    log_every: int = 50
    save_every: int = 250


class StageSettings(Protocol):
    """A dataclass with the settings of a stage; its `loop` holds the settings of the training loop."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def loop(self) -> LoopSettings: ...


class TrainingState:
    """Named parameters, their moving average and their optimiser."""

    def __init__(self, parameters: dict[str, Tensor], optimiser: MuonAdam) -> None:
        self.parameters = parameters
        self.optimiser = optimiser
        self.average = {name: value.detach().clone() for name, value in parameters.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors that a resumed training needs, by name."""
        named = {f"weight.{name}": value.detach() for name, value in self.parameters.items()}
        named |= {f"average.{name}": value for name, value in self.average.items()}
        return named | self.optimiser.state()

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Updates the moving average with the current weights."""
        averages = list(self.average.values())
        torch._foreach_lerp_(averages, [p.detach() for p in self.parameters.values()], 1 - decay)

    @torch.no_grad()
    def use_average(self) -> None:
        """Replaces the weights with their moving average."""
        for name, value in self.parameters.items():
            value.copy_(self.average[name])


def train(
    state: TrainingState,
    loss_at: Loss,
    lr_factor: Callable[[int], float],
    settings: StageSettings,
    folder: Path,
    stop: int | None = None,
) -> dict[str, Any] | None:
    """Trains for `settings.loop.steps` steps, starting from the state saved in `folder` if there is one.

    Args:
        state: Parameters and optimiser; updated in place.
        loss_at: Returns the loss of a step. Its randomness must depend only on the step number, so that a resumed
            training gives the same result as an uninterrupted one.
        lr_factor: Returns the factor on the learning rates for a step.
        settings: The stage's settings; saved with the state.
        folder: Where the state is saved.
        stop: Step at which to save the state and return early; None trains to the end.

    Returns:
        The history ("seconds" and "log"), or None after an early stop.

    Raises:
        ValueError: If `folder` holds the state of a training with other settings.
    """
    loop, settings_json = settings.loop, json.dumps(asdict(settings), sort_keys=True)
    step, history = _resume(state, folder, settings_json)
    started, first, recent = time.monotonic(), step, []
    spent = history["seconds"]
    while step < loop.steps:
        if stop is not None and step >= stop:
            history["seconds"] = spent + time.monotonic() - started
            _save(state, folder, step, history, settings_json)
            return None
        loss, metrics = loss_at(step)
        state.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.parameters.values(), 1.0)
        state.optimiser.step(lr_factor(step))
        state.update_average(min(loop.ema_decay, (step + 1) / (step + 10)))
        recent.append(metrics)
        step += 1
        history["seconds"] = spent + time.monotonic() - started
        if step % loop.log_every == 0 or step == loop.steps:
            seconds_per_step = (time.monotonic() - started) / (step - first)
            means = {key: sum(item[key] for item in recent) / len(recent) for key in recent[0]}
            recent.clear()
            history["log"].append({"step": step, **{key: round(value, 5) for key, value in means.items()}})
            summary = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
            minutes_left = seconds_per_step * (loop.steps - step) / 60
            print(
                f"  {step}/{loop.steps}  {summary}  {seconds_per_step:.2f} s/step, {minutes_left:.1f} min left",
                flush=True,
            )
        if step % loop.save_every == 0:
            _save(state, folder, step, history, settings_json)
    state.use_average()
    return history


def delete_state(folder: Path) -> None:
    """Deletes the saved state of a stage whose output is complete."""
    (folder / "state.safetensors").unlink(missing_ok=True)


def _save(state: TrainingState, folder: Path, step: int, history: dict[str, Any], settings_json: str) -> None:
    """Writes the state to `folder`, replacing the previous one atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "state.partial"
    tensors = {name: value.contiguous() for name, value in state.tensors().items()}
    save_file(tensors, fresh, metadata={"step": str(step), "history": json.dumps(history), "settings": settings_json})
    fresh.replace(folder / "state.safetensors")


def _resume(state: TrainingState, folder: Path, settings_json: str) -> tuple[int, dict[str, Any]]:
    """Loads the saved state, if any, into `state`; returns the step at which to continue and the history."""
    path = folder / "state.safetensors"
    if not path.exists():
        return 0, {"seconds": 0.0, "log": []}
    with safe_open(path, framework="pt") as saved:
        metadata = saved.metadata()
        if metadata.get("settings") != settings_json:
            raise ValueError(
                f"{path}: expected a training state with the settings {settings_json}, got the settings "
                f"{metadata.get('settings')}; delete the file to start this stage again"
            )
        with torch.no_grad():
            for name, tensor in state.tensors().items():
                tensor.copy_(saved.get_tensor(name))
    print(f"  resumed at step {metadata['step']}", flush=True)
    return int(metadata["step"]), json.loads(metadata["history"])
