"""Keeps the measurements of a slow CPU in the cache folder, so that only the first start takes the time for them."""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from zrelay_generator.cost.model import CostModel, Measurements
from zrelay_shared import atomic, private, strict_json

log = logging.getLogger(__name__)
_VERSION = 1
_MAX_MEASUREMENTS = 64
_MAX_SECONDS = 86400.0


class CostCache:
    """Measurements of one model in one dtype on one device."""

    def __init__(self, folder: Path, key: Sequence[str]) -> None:
        """Names the file; it is read and written later.

        Args:
            folder: The cache folder.
            key: All that the times depend on: the model, the dtype, the device, the number of threads, torch's version.
        """
        self._path = folder / f"cost-{hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()[:24]}.json"

    def restore(self, cost: CostModel) -> bool:
        """Adds the measurements of an earlier start to a cost model. Returns whether there were any.

        A damaged file counts as none.
        """
        try:
            kept = strict_json.parse(self._path.read_bytes())
            if kept["version"] != _VERSION:
                return False
            found = Measurements(_rows(kept["forwards"], 2), _rows(kept["decodes"], 1))
        except (OSError, ValueError, TypeError, KeyError):
            return False
        if not found.forwards or not found.decodes:
            return False
        cost.add(found)
        return True

    def keep(self, cost: CostModel) -> None:
        """Writes the measurements of a cost model. A failure only costs time at the next start: it is logged."""
        found = cost.measurements()
        content = {"version": _VERSION, "forwards": found.forwards, "decodes": found.decodes}
        try:
            self._path.parent.mkdir(private.FOLDER_MODE, parents=True, exist_ok=True)
            atomic.write_bytes(self._path, json.dumps(content).encode(), private=True)
        except OSError as error:
            log.warning(
                "the measured times cannot be kept in %s (%s): the next start measures again", self._path, error
            )


def _rows(value: object, sizes: int) -> tuple[tuple[float, ...], ...]:
    """Returns rows of `sizes` sizes and the seconds. Raises ValueError for anything else."""
    if not isinstance(value, list) or len(value) > _MAX_MEASUREMENTS:
        raise ValueError(f"expected a list of at most {_MAX_MEASUREMENTS} measurements")
    return tuple(_row(row, sizes) for row in value)


def _row(row: object, sizes: int) -> tuple[float, ...]:
    if not isinstance(row, list) or len(row) != sizes + 1:
        raise ValueError(f"expected {sizes + 1} numbers, got {row!r}")
    numbers = tuple(float(number) for number in row if isinstance(number, int | float))
    if len(numbers) != len(row) or not all(math.isfinite(number) and number > 0.0 for number in numbers):
        raise ValueError(f"expected finite numbers above 0, got {row!r}")
    if numbers[-1] > _MAX_SECONDS:
        raise ValueError(f"expected at most {_MAX_SECONDS:.0f} seconds, got {numbers[-1]}")
    return numbers
