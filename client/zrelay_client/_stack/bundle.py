"""Where the demo checkpoint is, found without importing what trained it."""

from importlib.util import find_spec
from pathlib import Path

from zrelay_shared.errors import CheckpointError


def demo_checkpoint() -> Path:
    """The bundled checkpoint's folder. Raises CheckpointError where this installation has none."""
    spec = find_spec("zrelay_demo")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(place) / "checkpoint"
        if (folder / "model_index.json").is_file():
            return folder
    raise CheckpointError(
        "this installation has no demo checkpoint: pass --model FOLDER, a Z-Image pipeline folder as diffusers saves it"
    )
