"""Priority classes of jobs."""

from enum import IntEnum


class Priority(IntEnum):
    """The class of a job; a lower value is more urgent."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2
