"""Networks of network namespaces: a link of a known rate to one (veth, and a token bucket at each end), or several on a
switch (veth and a bridge)."""

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


@dataclass(frozen=True)
class SwitchedHost:
    """A network namespace with an address on a switch. Its device is `<namespace>b`."""

    namespace: str
    address: str

    def move(self, address: str) -> "SwitchedHost":
        """Gives the host another address, as a router may, and returns it with that."""
        _run(f"ip -n {self.namespace} addr flush dev {self.namespace}b")
        _address(self.namespace, address)
        return SwitchedHost(self.namespace, address)


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

    _run(f"ip netns add {name}")
    try:
        _run(f"ip link add {here} type veth peer name {there} netns {name}")
        _run(f"ip addr add 10.213.77.1/30 dev {here}")
        _run(f"ip link set {here} up")
        _run(f"ip -n {name} addr add 10.213.77.2/30 dev {there}")
        _run(f"ip -n {name} link set {there} up")
        _run(f"tc qdisc add dev {here} root tbf rate {mbit}mbit burst 128kb latency 100ms")
        _run(f"tc -n {name} qdisc add dev {there} root tbf rate {mbit}mbit burst 128kb latency 100ms")
        yield RateLimitedLink(name, "10.213.77.2")
    finally:
        _run(f"ip netns del {name}")


@contextmanager
def switched(count: int) -> Iterator[list[SwitchedHost]]:
    """`count` hosts on one switch, which no other machine is connected to; gone when the block ends."""
    switch = f"zrb{os.getpid()}s"
    hosts = [SwitchedHost(f"zrb{os.getpid()}{index}", f"10.213.78.{10 + index}") for index in range(count)]
    made = []
    try:
        for namespace in (switch, *(host.namespace for host in hosts)):
            _run(f"ip netns add {namespace}")
            made.append(namespace)
            _run(f"ip -n {namespace} link set lo up")
        _run(f"ip -n {switch} link add bridge type bridge")
        _run(f"ip -n {switch} link set bridge up")
        for host in hosts:
            name = host.namespace
            _run(f"ip -n {switch} link add {name}a type veth peer name {name}b netns {name}")
            _run(f"ip -n {switch} link set {name}a master bridge up")
            _run(f"ip -n {name} link set {name}b up")
            _address(name, host.address)
        yield hosts
    finally:
        for namespace in made:
            _run(f"ip netns del {namespace}")


def _address(namespace: str, address: str) -> None:
    """Sets the address of a host, and a route to elsewhere, which leads to nobody."""
    _run(f"ip -n {namespace} addr add {address}/24 dev {namespace}b")
    _run(f"ip -n {namespace} route replace default via 10.213.78.1")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def enter(namespace: str) -> None:
    """Moves the calling process into a namespace. Raises OSError where it may not."""
    with (Path("/var/run/netns") / namespace).open() as handle:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle.fileno(), 0x40000000) != 0:  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
