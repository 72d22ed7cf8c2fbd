"""The seeds of a batch: `--seeds 7,9,100-199`, or `--count N` from a seed on."""

import re
import secrets

import click

_MOST = 10_000


def seeds_of(given: str | None, count: int | None, first: int | None, images: int) -> list[int]:
    """A seed for each job. Jobs of several `images` (image i has seed + i) get seeds that far apart, so that no picture
    comes twice. Raises click.UsageError."""
    if given is None:
        start = secrets.randbelow(1 << 32) if first is None else first
        return [start + index * max(1, images) for index in range(min(count or 1, _MOST + 1))]
    if count is not None or first is not None:
        raise click.UsageError("--seeds says which and how many: leave out --seed and --count")
    seeds: list[int] = []
    for part in given.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})(?:\s*-\s*(\d{1,20}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high:
            raise click.UsageError(f"--seeds: expected numbers and ranges such as 7,9,100-199, got {part.strip()!r}")
        if high - low + len(seeds) >= _MOST:
            raise click.UsageError(f"--seeds: expected at most {_MOST} seeds, got more")
        seeds += range(low, high + 1)
    return seeds
