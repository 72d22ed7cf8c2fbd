"""The one-time codes of pairing: the long one, which `zrelay pair` prints, and the short one, which a person can type.

A long code is `zr1` and base32 of: port (2 bytes), fingerprint (16), secret (8), length of the host (1), host (ASCII,
or 4 or 16 bytes of an IP address), checksum (2: CRC-32, lower half). It has 56 characters for an IPv4 address.
"""

import base64
import hmac
import ipaddress
import re
import secrets
import zlib
from dataclasses import dataclass

FINGERPRINT_BYTES = 16
SECRET_BYTES = 8
SHORT_DIGITS = 8
_PREFIX = "zr1"
_MAX_CODE = 400
_SHORT = re.compile(r"[0-9]{4}[- ]?[0-9]{4}")
_KINDS = {4: ipaddress.IPv4Address, 16: ipaddress.IPv6Address}
_IP, _NAME = 0, 0x80
"""Bit of the length of the host that marks a name."""


@dataclass(frozen=True, slots=True)
class PairingCode:
    """A long code.

    Attributes:
        host: Host name or IP address of the pairing port.
        port: Its port.
        fingerprint: The first 16 bytes of the SHA-256 of the certificate that the pairing port shows.
        secret: 8 random bytes, which the joining machine proves to know.
    """

    host: str
    port: int
    fingerprint: bytes
    secret: bytes

    def __str__(self) -> str:
        try:
            host, mark = ipaddress.ip_address(self.host).packed, _IP
        except ValueError:
            host, mark = self.host.encode("ascii"), _NAME
        if len(host) > 0x7F:
            raise ValueError(f"host: expected at most 127 characters, got {len(host)}")
        body = self.port.to_bytes(2) + self.fingerprint + self.secret + bytes([len(host) | mark]) + host
        data = body + _checksum(body)
        return _PREFIX + base64.b32encode(data).decode("ascii").rstrip("=").lower()

    def matches(self, certificate_sha256: bytes) -> bool:
        """Returns whether a certificate with this SHA-256 is the one that the code names, in constant time."""
        return hmac.compare_digest(self.fingerprint, certificate_sha256[:FINGERPRINT_BYTES])


def new_secret() -> bytes:
    """Returns the secret of a new code."""
    return secrets.token_bytes(SECRET_BYTES)


def new_short() -> str:
    """Returns a new short code, eight digits."""
    return f"{secrets.randbelow(10**SHORT_DIGITS):0{SHORT_DIGITS}d}"


def is_short(text: str) -> bool:
    """Returns whether a text is a short code: eight digits, in two groups if the user likes."""
    return bool(_SHORT.fullmatch(text.strip()))


def parse_short(text: str) -> str:
    """Returns the eight digits of a short code.

    Raises:
        ValueError: It is none.
    """
    if not is_short(text):
        raise ValueError(f"expected {SHORT_DIGITS} digits, got {text.strip()[:40]!r}")
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
    if len(data) < fixed + 3 or _checksum(data[:-2]) != data[-2:]:
        raise ValueError("its checksum does not match: copy the whole code again")
    length = data[fixed - 1]
    host = data[fixed:-2]
    if length & 0x7F != len(host):
        raise ValueError("its length does not match: copy the whole code again")
    port = int.from_bytes(data[:2])
    fingerprint = data[2 : 2 + FINGERPRINT_BYTES]
    return PairingCode(_host(host, bool(length & _NAME)), port, fingerprint, data[2 + FINGERPRINT_BYTES : fixed - 1])


def _host(packed: bytes, is_name: bool) -> str:
    if not is_name:
        kind = _KINDS.get(len(packed))
        if kind is None:
            raise ValueError(f"expected an address of 4 or 16 bytes, got {len(packed)}")
        return str(kind(packed))
    if not packed.isascii() or not re.fullmatch(rb"[A-Za-z0-9.-]+", packed):
        raise ValueError("expected a host name of letters, digits, dots and hyphens")
    return packed.decode("ascii")


def _checksum(body: bytes) -> bytes:
    return (zlib.crc32(body) & 0xFFFF).to_bytes(2)
