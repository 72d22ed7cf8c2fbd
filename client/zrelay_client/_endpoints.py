"""Where services are found: `HOST`, `HOST:PORT`, `[v6]:PORT`, or what gRPC resolves itself; several by commas."""

from collections.abc import Sequence

from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import DEFAULT_PORTS

_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:")


def parse_endpoint(role: str, text: str) -> str:
    """The endpoint that gRPC dials, the role's own port filled in. Raises InvalidArgument (ENDPOINT_INVALID)."""
    given = text.strip()
    if given.startswith(_GRPC_SCHEMES):
        return given
    host, port = _split(given)
    if "/" in given or not host or not ((port.isdigit() and 0 < int(port) <= 65535) or port == ""):
        raise InvalidArgument(
            f"{role}: expected an endpoint such as macbook.local or 127.0.0.1:{DEFAULT_PORTS[role]}, got {text!r}",
            field=role,
            reason="ENDPOINT_INVALID",
        )
    return f"{host}:{port or DEFAULT_PORTS[role]}"


def parse_endpoints(role: str, given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The endpoints of a role, each once: one text with commas, or several texts. Raises as `parse_endpoint`."""
    texts = [given] if isinstance(given, str) else list(given or ())
    return tuple(dict.fromkeys(parse_endpoint(role, part) for text in texts for part in split_endpoints(text)))


def split_endpoints(text: str) -> list[str]:
    """The endpoints of a text with commas; itself where it names none."""
    return [part.strip() for part in text.split(",") if part.strip()] or [text]


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, rest = text.partition("]")
        return f"{host}]", rest.removeprefix(":")
    if text.count(":") > 1:
        return f"[{text}]", ""
    host, _, port = text.partition(":")
    return host, port
