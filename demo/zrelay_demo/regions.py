"""Connected regions of a mask, computed with NumPy only."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def label(mask: Mask) -> NDArray[np.int32]:
    """Numbers the 4-connected regions of a mask [h, w] from 1; pixels outside the mask are 0.

    The regions are built from the horizontal runs of each row.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first_of_row = np.searchsorted(rows, np.arange(height + 1)).tolist()
    begin, end = starts.tolist(), ends.tolist()
    for row in range(1, height):
        above, here = first_of_row[row - 1], first_of_row[row]
        while above < first_of_row[row] and here < first_of_row[row + 1]:
            if begin[above] < end[here] and begin[here] < end[above]:
                parent[root(here)] = root(above)
            if end[above] < end[here]:
                above += 1
            else:
                here += 1
    numbers: dict[int, int] = {}
    labels = np.zeros((height, width), dtype=np.int32)
    for run, row in enumerate(rows.tolist()):
        labels[row, begin[run] : end[run]] = numbers.setdefault(root(run), len(numbers) + 1)
    return labels


def regions(mask: Mask, least: int) -> list[Mask]:
    """Returns the 4-connected regions with at least `least` pixels, one mask each."""
    labels = label(mask)
    sizes = np.bincount(labels.ravel())
    return [labels == number for number in range(1, len(sizes)) if sizes[number] >= least]


def filled(mask: Mask) -> Mask:
    """Returns the mask with its holes filled."""
    outside = label(np.pad(~mask, 1, constant_values=True))
    solid: Mask = (outside != outside[0, 0])[1:-1, 1:-1]
    return solid


def eroded(mask: Mask) -> Mask:
    """Returns the pixels whose four neighbours also belong to the mask."""
    padded = np.pad(mask, 1)
    inner: Mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner
