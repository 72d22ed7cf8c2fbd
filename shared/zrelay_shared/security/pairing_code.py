"""The one-time codes of pairing: the long one, which `zrelay pair` prints, and the short one, which a person can type.

A long code is `zr1` and base32 of: port (2 bytes), fingerprint (16), secret (8), length of the host (1), host (ASCII,
or 4 or 16 bytes of an IP address), checksum (2: CRC-16/CCITT). It has 56 characters for an IPv4 address. The checksum
finds every change of one character, and every exchange of two neighbours: it finds all errors within 16 bits.
"""

import base64
import binascii
import hmac
import ipaddress
import re
import secrets
from dataclasses import dataclass, field

FINGERPRINT_BYTES = 16
SECRET_BYTES = 8
SHORT_DIGITS = 8
SERVER_NAME = "zrelay-pairing"
"""The only host name of the certificate that the pairing port shows. No resolver is asked for it."""
_PREFIX = "zr1"
_MAX_CODE = 400
_SHORT = re.compile(r"[0-9]{4}[- ]?[0-9]{4}")
_KINDS = {4: ipaddress.IPv4Address, 16: ipaddress.IPv6Address}
_NAME = 0x80
"""Bit of the length of the host that marks a name."""
_MAX_HOST = 0x7F
_HOST = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class PairingCode:
    """A long code.

    Attributes:
        host: Host name or IP address of the pairing port.
        port: Its port.
        fingerprint: The first 16 bytes of the SHA-256 of the certificate that the pairing port shows.
        secret: 8 random bytes, which the joining machine sends once it has verified the certificate.

    Raises:
        ValueError: The host or the port cannot be written in a code.
    """

    host: str
    port: int
    fingerprint: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        packed, is_name = _packed(self.host)
        if _host(packed, is_name) != self.host:
            raise ValueError(f"expected a host name or an IP address as it is usually written, got {self.host!r}")
        if not 0 < self.port <= 0xFFFF:
            raise ValueError(f"expected a port of 1 to 65535, got {self.port}")

    def __str__(self) -> str:
        host, is_name = _packed(self.host)
        length = len(host) | (_NAME if is_name else 0)
        body = self.port.to_bytes(2) + self.fingerprint + self.secret + bytes([length]) + host
        return _PREFIX + _base32(body + _checksum(body))

    def matches(self, certificate_sha256: bytes) -> bool:
        """Returns whether a certificate with this SHA-256 is the one that the code names, in constant time."""
        return hmac.compare_digest(self.fingerprint, certificate_sha256[:FINGERPRINT_BYTES])


def new_secret() -> bytes:
    """Returns the secret of a new code."""
    return secrets.token_bytes(SECRET_BYTES)


def new_exchange_id() -> bytes:
    """Returns the id of a new exchange of a short code."""
    return secrets.token_bytes(16)


def new_short() -> str:
    """Returns a new short code, eight digits."""
    return f"{secrets.randbelow(10**SHORT_DIGITS):0{SHORT_DIGITS}d}"


def is_short(text: str) -> bool:
    """Returns whether a text is a short code: eight digits, in two groups if the user likes."""
    return bool(_SHORT.fullmatch(text.strip()))


def parse_short(text: str) -> str:
    """Returns the eight digits of a short code.

    Raises:
        ValueError: It is none; the message does not repeat it.
    """
    if not is_short(text):
        raise ValueError(f"expected {SHORT_DIGITS} digits, as `zrelay pair --short` prints them, got something else")
    return re.sub(r"[- ]", "", text.strip())


def parse(text: str) -> PairingCode:
    """Reads a long code. Capitals, spaces, line breaks and hyphens do not matter.

    Raises:
        ValueError: It is none; a message names what is wrong with it, without the secret.
    """
    if len(text) > _MAX_CODE:
        raise ValueError(f"expected a code of at most {_MAX_CODE} characters, got {len(text)}")
    plain = re.sub(r"[\s-]", "", text).lower()
    if not plain.startswith(_PREFIX):
        raise ValueError(f"expected a code that begins with {_PREFIX}, as `zrelay pair` prints it")
    body = plain.removeprefix(_PREFIX).upper()
    try:
        data = base64.b32decode(body + "=" * (-len(body) % 8))
    except ValueError:
        raise ValueError("expected the letters a to z and the digits 2 to 7, got others: copy the whole code") from None
    fixed = 2 + FINGERPRINT_BYTES + SECRET_BYTES + 1
    if len(data) < fixed + 3 or _checksum(data[:-2]) != data[-2:] or _base32(data) != body.lower():
        raise ValueError("its checksum does not match: copy the whole code again")
    length = data[fixed - 1]
    host = data[fixed:-2]
    if length & 0x7F != len(host):
        raise ValueError("its length does not match: copy the whole code again")
    port = int.from_bytes(data[:2])
    fingerprint = data[2 : 2 + FINGERPRINT_BYTES]
    return PairingCode(_host(host, bool(length & _NAME)), port, fingerprint, data[2 + FINGERPRINT_BYTES : fixed - 1])


def _packed(host: str) -> tuple[bytes, bool]:
    """Returns the bytes of a host in a code, and whether they are a name."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if getattr(found, "scope_id", None):
            raise ValueError(f"expected an address without a zone, which means nothing to other machines, got {host!r}")
        return found.packed, False
    packed = host.encode("ascii", "replace")
    if len(packed) > _MAX_HOST:
        raise ValueError(f"expected a host name of at most {_MAX_HOST} characters, got {len(packed)}")
    return packed, True


def _host(packed: bytes, is_name: bool) -> str:
    if not is_name:
        kind = _KINDS.get(len(packed))
        if kind is None:
            raise ValueError(f"expected an address of 4 or 16 bytes, got {len(packed)}")
        return str(kind(packed))
    if not _HOST.fullmatch(packed):
        raise ValueError("expected a host name of letters, digits, dots and hyphens")
    return packed.decode("ascii")


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _checksum(body: bytes) -> bytes:
    return binascii.crc_hqx(body, 0xFFFF).to_bytes(2)
