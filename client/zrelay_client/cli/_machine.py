"""What this machine is to others: its name, and the addresses by which they reach it."""

import re
import socket
from collections.abc import Mapping

_PROBES = (
    (socket.AF_INET, "192.0.2.1"),  # RFC 5737: for documentation
    (socket.AF_INET6, "2001:db8::1"),  # RFC 3849: likewise
)
"""Addresses that exist nowhere. A socket is connected to one to learn the route; a UDP socket sends nothing by that."""


def default_name() -> str:
    """Returns the name of this machine as pairing names machines: the first part of its host name."""
    name = re.sub(r"[^a-z0-9_-]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-_")[:63].strip("-_")
    return name if re.search("[a-z]", name) else f"machine-{name}".strip("-")


def lan_address() -> str | None:
    """Returns the address of this machine on the network of its default route, None where it has none."""
    for family, probe in _PROBES:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((probe, 9))
                address = str(sock.getsockname()[0])
        except OSError:
            continue
        if "%" not in address and not address.startswith(("127.", "0.", "::1", "fe80:")):
            return address
    return None


def server_names(host: str) -> list[str]:
    """Returns the names and addresses for the certificate of this machine's services.

    Args:
        host: The name or address that other machines use.
    """
    name = socket.gethostname().lower()
    first = name.partition(".")[0]
    mine = [host, lan_address() or "", *(each for each in (name, f"{first}.local") if _is_name(each))]
    return list(dict.fromkeys([*filter(None, mine), "localhost", "127.0.0.1", "::1"]))


def bind_host(host: str) -> str:
    """Returns the address to bind for callers of `host`: `host` if this machine has the address, else all."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
            return host
    except OSError:  # a name, or the address of a router in front
        pass
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def place(host: str, port: int) -> str:
    """Returns HOST:PORT."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def start_commands(services: Mapping[str, str]) -> list[str]:
    """Returns the commands that serve services where other machines reach them.

    Args:
        services: Role -> HOST:PORT.
    """
    return [f"zrelay serve {role} --model FOLDER --listen {endpoint}" for role, endpoint in services.items()]


def _is_name(name: str) -> bool:
    return bool(re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*", name))
