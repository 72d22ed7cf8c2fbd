"""Cycles are found soon beside much that stays; each test in a process of its own, for it changes the whole of it."""

import subprocess
import sys
import textwrap

COLLECTED = textwrap.dedent("""
    import gc
    from zrelay_shared.service import process

    class Node:
        alive = 0
        def __init__(self): Node.alive += 1; self.me = self
        def __del__(self): Node.alive -= 1

    library = [[] for _ in range(400_000)]
    gc.collect()
    {call}
    most = 0
    for _ in range(300):  # calls: each leaves a cycle that grew old while it ran
        under_way = [Node() for _ in range(100)]
        for _ in range(3): gc.collect(1)
        del under_way
        passing = [[] for _ in range(1000)]
        most = max(most, Node.alive)
    print(most)
""")


def most_alive(call: str) -> int:
    script = COLLECTED.format(call=call)
    return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def test_cycles_that_grew_old_are_collected_soon() -> None:
    assert most_alive("process.freeze_objects()") < 1000
    assert most_alive("pass") > 5000, "the test shows something"
