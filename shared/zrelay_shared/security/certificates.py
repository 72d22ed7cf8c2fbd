"""Keys and certificates (X.509, ECDSA on P-256) as PEM: an authority, requests, and what the authority issues.

Pure functions: they read and write no files. `installation` keeps what they make.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
_BACKDATED = timedelta(minutes=5)
"""A certificate is valid from this long before it is issued: the clocks of two machines differ."""
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
MAX_PEM_BYTES = 64 << 10
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*")


class CertificateInvalid(ValueError):
    """A key, request or certificate cannot be used. The message is `expected X, got Y`."""


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """What a certificate says.

    Attributes:
        name: The common name.
        server_names: Host names and addresses that it is valid for as a server.
        not_before, not_after: The first and the last moment at which it is valid, in UTC.
        serial: Serial number, hexadecimal.
        fingerprint: SHA-256 of its DER bytes, hexadecimal.
    """

    name: str
    server_names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    serial: str
    fingerprint: str


def checked_name(name: str) -> str:
    """Returns the name of a machine, person or script.

    Raises:
        CertificateInvalid: It is not 1 to 63 lower-case letters, digits, dots, hyphens and underscores.
    """
    if not _NAME.fullmatch(name):
        shown = repr(name[:40])
        raise CertificateInvalid(
            f"expected a name of 1 to 63 lower-case letters, digits, dots, hyphens or underscores, got {shown}"
        )
    return name


def new_key() -> bytes:
    """Returns a new private key, unencrypted PKCS #8."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def new_request(key: bytes, name: str) -> bytes:
    """Returns a certificate signing request (PKCS #10) for a key.

    Raises:
        CertificateInvalid: The key or the name cannot be used.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, checked_name(name))])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(_key(key), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate authority of an installation. It issues certificates, but no further authorities.

    Attributes:
        certificate: Its certificate.
        key: Its private key.
    """

    certificate: bytes
    key: bytes

    @classmethod
    def create(cls, name: str, now: datetime) -> "Authority":
        """Makes an authority with a new key.

        Args:
            name: Its common name.
            now: The present time, in UTC.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        certificate = (
            _builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(certificate.public_bytes(serialization.Encoding.PEM), pem)

    def issue(
        self,
        request: bytes,
        name: str,
        now: datetime,
        *,
        server_names: Sequence[str] = (),
        days: int = CERTIFICATE_DAYS,
    ) -> bytes:
        """Issues a certificate for the key of a request. Everything else in the request is ignored.

        Args:
            request: The signing request.
            name: The common name.
            now: The present time, in UTC.
            server_names: Host names and addresses. With any, it is the certificate of a server, which may also call
                others; without, that of a client alone.
            days: Days for which it is valid; at most until the authority's own certificate ends.

        Raises:
            CertificateInvalid: The request, the name or a server name cannot be used.
        """
        asked, issuer = _request(request), _certificate(self.certificate)
        try:
            public_key = asked.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise CertificateInvalid("expected a request for a key on the curve P-256, got an unknown key") from error
        if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
            raise CertificateInvalid("expected a request for a key on the curve P-256, got another kind of key")
        if not asked.is_signature_valid:
            raise CertificateInvalid("expected a request that its own key has signed, got an invalid signature")
        key = _key(self.key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, checked_name(name))])
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if server_names else [])]
        builder = (
            _builder(subject, issuer.subject, public_key, now, days, issuer.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        )
        if server_names:
            names = x509.SubjectAlternativeName([_general_name(each) for each in dict.fromkeys(server_names)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def self_signed(name: str) -> tuple[bytes, bytes]:
    """Returns a certificate that only its own fingerprint vouches for, and its key. Pairing uses one.

    It is valid at all times: the fingerprint identifies it whatever the clock of the other machine shows.

    Args:
        name: Its common name, and the only host name that it is valid for.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FIRST)
        .not_valid_after(_LAST)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM), pem


def canonical(certificate: bytes) -> bytes:
    """Returns the first certificate of a PEM text, without anything else that the text holds.

    Raises:
        CertificateInvalid: It holds no certificate.
    """
    return _certificate(certificate).public_bytes(serialization.Encoding.PEM)


def is_authority(certificate: bytes) -> bool:
    """Returns whether a certificate may issue others, and has signed itself.

    Raises:
        CertificateInvalid: It is no certificate.
    """
    found = _certificate(certificate)
    try:
        constraints = found.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.ca and is_issued_by(certificate, certificate)


def describe(certificate: bytes) -> CertificateInfo:
    """Returns what a certificate says.

    Raises:
        CertificateInvalid: It is no certificate.
    """
    found = _certificate(certificate)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        server_names = tuple(str(each.value) for each in names)
    except x509.ExtensionNotFound:
        server_names = ()
    common = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return CertificateInfo(
        str(common[0].value) if common else "",
        server_names,
        found.not_valid_before_utc,
        found.not_valid_after_utc,
        f"{found.serial_number:x}",
        found.fingerprint(hashes.SHA256()).hex(),
    )


def is_issued_by(certificate: bytes, authority: bytes) -> bool:
    """Returns whether an authority has signed a certificate. Its validity in time is not checked.

    Raises:
        CertificateInvalid: One of them is no certificate.
    """
    subject, issuer = _certificate(certificate), _certificate(authority)
    try:
        subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def belong_together(certificate: bytes, key: bytes) -> bool:
    """Returns whether a certificate was issued for a private key of any kind.

    Raises:
        CertificateInvalid: One of them cannot be read.
    """
    return _certificate(certificate).public_key() == _any_key(key).public_key()


def checked_server_name(name: str) -> str:
    """Returns a host name or an IP address, in lower case.

    Raises:
        CertificateInvalid: It is neither.
    """
    _general_name(name)
    return name.lower()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    until: datetime | None = None,
) -> x509.CertificateBuilder:
    ends = now.astimezone(UTC) + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - _BACKDATED)
        .not_valid_after(ends if until is None else min(ends, until))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]").partition("%")[0]))
    except ValueError:
        pass
    lowered = name.lower()
    if not _HOST.fullmatch(lowered):
        raise CertificateInvalid(f"expected a host name or an IP address, got {name[:60]!r}")
    return x509.DNSName(lowered)


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_bounded(pem, "a certificate"))
    except CertificateInvalid:
        raise
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateInvalid("expected a certificate in PEM, got something else") from error


def _request(pem: bytes) -> x509.CertificateSigningRequest:
    try:
        return x509.load_pem_x509_csr(_bounded(pem, "a signing request"))
    except CertificateInvalid:
        raise
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateInvalid("expected a signing request in PEM, got something else") from error


def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = _any_key(pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateInvalid("expected a private key on an elliptic curve, got another kind of key")
    return key


def _any_key(pem: bytes) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(_bounded(pem, "a private key"), password=None)
    except CertificateInvalid:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        raise CertificateInvalid("expected an unencrypted private key in PEM, got something else") from error


def _bounded(pem: bytes, what: str) -> bytes:
    if len(pem) > MAX_PEM_BYTES:
        raise CertificateInvalid(f"expected {what} of at most {MAX_PEM_BYTES} bytes, got {len(pem)}")
    return pem
