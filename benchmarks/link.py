"""A link of a known rate to a network namespace of its own: veth, and a token bucket at each end."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RateLimitedLink:
    """`namespace` holds the far end, which is reached at `host`."""

    namespace: str
    host: str


def possible() -> str:
    """ "" where a link can be made, else why not."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        return "needs root, ip and tc (Debian: iproute2)"
    probe = subprocess.run(["ip", "netns", "add", f"zrb{os.getpid()}p"], capture_output=True, text=True)
    if probe.returncode != 0:
        return f"no network namespaces here: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", f"zrb{os.getpid()}p"], check=True)
    return ""


@contextmanager
def limited(mbit: int) -> Iterator[RateLimitedLink]:
    """A link of `mbit` Mbit/s each way, gone when the block ends."""
    name = f"zrb{os.getpid()}"
    here, there = f"{name}a", f"{name}b"

    def run(command: str) -> None:
        subprocess.run(command.split(), check=True)

    run(f"ip netns add {name}")
    try:
        run(f"ip link add {here} type veth peer name {there} netns {name}")
        run(f"ip addr add 10.213.77.1/30 dev {here}")
        run(f"ip link set {here} up")
        run(f"ip -n {name} addr add 10.213.77.2/30 dev {there}")
        run(f"ip -n {name} link set {there} up")
        run(f"tc qdisc add dev {here} root tbf rate {mbit}mbit burst 128kb latency 100ms")
        run(f"tc -n {name} qdisc add dev {there} root tbf rate {mbit}mbit burst 128kb latency 100ms")
        yield RateLimitedLink(name, "10.213.77.2")
    finally:
        run(f"ip netns del {name}")


def enter(namespace: str) -> None:
    """Moves the calling process into a namespace. Raises OSError where it may not."""
    with (Path("/var/run/netns") / namespace).open() as handle:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle.fileno(), 0x40000000) != 0:  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
