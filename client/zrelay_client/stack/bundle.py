"""Finds the bundled demo checkpoint without importing the demo package."""

import subprocess
from importlib.util import find_spec
from pathlib import Path

from zrelay_client.stack.interpreter import child_environment, module_command
from zrelay_shared.errors import CheckpointError


def demo_checkpoint() -> Path:
    """Returns the folder of the bundled checkpoint. Raises CheckpointError where this installation has none."""
    folder = _bundled("checkpoint", "model_index.json")
    if folder is None:
        raise CheckpointError(
            "this installation has no demo checkpoint: pass --model FOLDER, a Z-Image pipeline folder as diffusers "
            "saves it"
        )
    return folder


def omni_checkpoint(folder: Path) -> Path:
    """Writes the demo checkpoint with the parts of Omni to `folder`, and returns it. Raises CheckpointError."""
    demo_checkpoint()
    command = module_command("zrelay_demo.omni_folder", str(folder))
    made = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    if made.returncode:
        raise CheckpointError(f"the demo's Omni checkpoint cannot be written: {made.stderr.strip()[-300:]}")
    return folder


def vision_model(model: Path) -> Path | None:
    """Returns the folder from which the vision service runs beside a pipeline folder.

    Returns:
        `model` itself where it holds qwen3_vl/ or siglip/, as an Omni pipeline does; the bundled vision checkpoint
        where `model` is the demo checkpoint; else None.
    """
    if any((model / name / "config.json").is_file() for name in ("qwen3_vl", "siglip")):
        return model
    demo = _bundled("checkpoint", "model_index.json")
    if demo is None or not model.exists() or not model.samefile(demo):
        return None
    return _bundled("vision_checkpoint", "qwen3_vl/config.json")


def _bundled(name: str, mark: str) -> Path | None:
    """Returns a folder of the demo package that holds the file `mark`, None where there is none."""
    spec = find_spec("zrelay_demo")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(place) / name
        if (folder / mark).is_file():
            return folder
    return None
