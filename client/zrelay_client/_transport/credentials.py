"""Credentials of a connection: the files of TLS, and a bearer token."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from zrelay_shared.errors import InvalidArgument, invalid

Pem: TypeAlias = bytes | Path
"""The text of a PEM file, or its path."""
MAX_PEM_BYTES = 64 << 10
_BEGIN = b"-----BEGIN "


@dataclass(frozen=True, slots=True, repr=False)
class TlsOptions:
    """How the client verifies a service, and proves who it is.

    The files are read for each new channel, so that renewed certificates need no restart.

    Attributes:
        authority: Certificate of the authority that has issued the service's certificate; None for those that the
            system trusts.
        certificate, key: The client's own certificate and its private key; None where a token is enough.

    Raises:
        InvalidArgument: TLS_FILES_INCOMPLETE, there is a certificate without a key, or a key without a certificate.
    """

    authority: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            given, missing = (
                ("tls_key", "tls_certificate") if self.certificate is None else ("tls_certificate", "tls_key")
            )
            raise InvalidArgument(
                f"{given}: expected `{missing}` with it, got none: a certificate is used with its private key",
                field=given,
                reason="TLS_FILES_INCOMPLETE",
            )

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Returns authority, key and certificate as PEM.

        Raises:
            InvalidArgument: TLS_FILE_INVALID, a file is not PEM.
            OSError: A file cannot be read.
        """
        return (
            _pem(self.authority, "tls_authority", b"CERTIFICATE-----"),
            _pem(self.key, "tls_key", b"PRIVATE KEY-----"),
            _pem(self.certificate, "tls_certificate", b"CERTIFICATE-----"),
        )

    def __repr__(self) -> str:
        return f"TlsOptions({', '.join(map(_shown, (self.authority, self.certificate, self.key)))})"


def _pem(source: Pem | None, what: str, kind: bytes) -> bytes | None:
    if source is None:
        return None
    data = source
    if isinstance(source, Path):
        with source.open("rb") as file:
            data = file.read(MAX_PEM_BYTES + 1)
    assert isinstance(data, bytes)
    if len(data) > MAX_PEM_BYTES or _BEGIN not in data or kind not in data:
        raise invalid(
            what,
            f"a PEM file of at most {MAX_PEM_BYTES >> 10} KiB with a {kind.decode().strip('-').lower()}",
            f"another file ({source})" if isinstance(source, Path) else "another text",
            reason="TLS_FILE_INVALID",
        )
    return data


def _shown(source: Pem | None) -> str:
    return "<PEM>" if isinstance(source, bytes) else str(source)


class Token:
    """A bearer token in a file. Its text appears in no message and in no `repr`.

    The file is read again when it has changed, so that a rotated token needs no restart.
    """

    __slots__ = ("_read", "path")

    def __init__(self, path: Path) -> None:
        """Names the file, which is read with the first call."""
        self.path = path
        self._read: tuple[tuple[int, int, int], str] | None = None

    def value(self) -> str:
        """Returns the text of the token.

        Raises:
            InvalidArgument: TOKEN_INVALID, the file holds no token.
            OSError: The file cannot be read.
        """
        from zrelay_shared.security.tokens import read_token

        stat = self.path.stat()
        state = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if self._read is None or self._read[0] != state:
            self._read = state, read_token(self.path)
        return self._read[1]

    def __repr__(self) -> str:
        return f"Token({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)
