"""Python's collector of reference cycles, set for a process with much that lives as long as it does."""

import gc


def keep_what_is_here() -> None:
    """Takes everything that is there now out of the collector's sight. Call it once, when a process is ready.

    The collector looks at old objects only once a quarter as many new ones have grown old. Beside the 400,000 objects
    of torch and transformers that is a hundred thousand: until then cycles pile up unseen (a call of grpc.aio leaves a
    small one), and the look itself, at all of them, stops every thread for a good part of a second.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # so that it knows how few old objects are left in its sight
