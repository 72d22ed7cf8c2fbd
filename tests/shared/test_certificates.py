"""Keys and certificates: what an authority issues, and what is refused."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.helpers.certificates import authority, issued
from zrelay_shared.security import certificates
from zrelay_shared.security.certificates import Authority, CertificateInvalid

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def extension(certificate: bytes, kind: type[Any]) -> Any:
    return x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(kind).value


def pem(key: Any) -> bytes:
    data: bytes = key.private_bytes(PEM, PKCS8, serialization.NoEncryption())
    return data


def test_the_certificate_of_a_member() -> None:
    owner = Authority.create("box", NOW)
    key = certificates.new_key()
    certificate = owner.issue(certificates.new_request(key, "mac"), "mac", NOW)
    found = certificates.describe(certificate)
    assert (found.name, found.server_names) == ("mac", ())
    assert (found.not_before, found.not_after) == (NOW - timedelta(minutes=5), NOW + timedelta(days=365))
    assert len(found.fingerprint) == 64 and int(found.serial, 16) > 1 << 64
    assert certificates.is_issued_by(certificate, owner.certificate)
    assert certificates.belong_together(certificate, key)
    assert list(extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not extension(certificate, x509.BasicConstraints).ca


def test_the_certificate_of_a_server() -> None:
    names = ("box.example", "BOX", "192.168.1.5", "[fe80::1%eth0]", "box.example")
    certificate = issued("box", server_names=names).certificate
    assert certificates.describe(certificate).server_names == ("box.example", "box", "192.168.1.5", "fe80::1")
    usages = list(extension(certificate, x509.ExtendedKeyUsage))
    assert usages == [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]


def test_an_authority_issues_no_authorities() -> None:
    owner = Authority.create("x" * 100, NOW)
    assert certificates.describe(owner.certificate).name == "x" * 64
    constraints = extension(owner.certificate, x509.BasicConstraints)
    assert constraints.ca and constraints.path_length == 0
    usage = extension(owner.certificate, x509.KeyUsage)
    assert usage.key_cert_sign and usage.crl_sign and not usage.digital_signature
    member = owner.issue(certificates.new_request(certificates.new_key(), "mac"), "mac", NOW)
    assert not extension(member, x509.KeyUsage).key_cert_sign
    assert certificates.describe(owner.certificate).not_after == NOW + timedelta(days=3650)


def test_no_certificate_outlives_its_authority() -> None:
    owner = Authority.create("box", NOW - timedelta(days=3600))
    certificate = owner.issue(certificates.new_request(certificates.new_key(), "mac"), "mac", NOW)
    assert certificates.describe(certificate).not_after == NOW + timedelta(days=50)


def test_certificates_of_another_authority_and_keys_of_another_certificate() -> None:
    mine, other = issued("mac"), issued("mac", by=authority("other"))
    assert not certificates.is_issued_by(mine.certificate, authority("other").certificate)
    assert not certificates.belong_together(mine.certificate, other.key)


def test_a_request_decides_about_its_key_alone() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root"), x509.NameAttribute(NameOID.COUNTRY_NAME, "XX")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("bank.example")]), critical=False)
    request = builder.sign(key, hashes.SHA256()).public_bytes(PEM)
    certificate = authority().issue(request, "mac", NOW)
    found = certificates.describe(certificate)
    assert (found.name, found.server_names) == ("mac", ()) and not extension(certificate, x509.BasicConstraints).ca
    assert len(x509.load_pem_x509_certificate(certificate).subject) == 1


@pytest.mark.parametrize("key", ["P-384", "Ed25519", "RSA"])
def test_a_request_for_another_kind_of_key_is_refused(key: str) -> None:
    made: Any
    if key == "P-384":
        made, algorithm = ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()
    elif key == "Ed25519":
        made, algorithm = ed25519.Ed25519PrivateKey.generate(), None
    else:
        made, algorithm = rsa.generate_private_key(65537, 1024), hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(made, algorithm)
    with pytest.raises(CertificateInvalid, match="expected a request for a key on the curve P-256"):
        authority().issue(request.public_bytes(PEM), "mac", NOW)


def test_a_request_whose_key_has_not_signed_it_is_refused() -> None:
    key = certificates.new_key()
    der = bytearray(
        x509.load_pem_x509_csr(certificates.new_request(key, "mac")).public_bytes(serialization.Encoding.DER)
    )
    at = der.index(b"mac")
    der[at : at + 3] = b"pad"
    request = x509.load_der_x509_csr(bytes(der)).public_bytes(PEM)
    with pytest.raises(CertificateInvalid, match="its own key has signed"):
        authority().issue(request, "mac", NOW)


@pytest.mark.parametrize("name", ["", "Mac", "-mac", "mac.", "a b", "a/b", "ä", "a\n", "x" * 64])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(CertificateInvalid, match="expected a name of 1 to 63"):
        certificates.checked_name(name)
    with pytest.raises(CertificateInvalid):
        certificates.new_request(certificates.new_key(), name)
    with pytest.raises(CertificateInvalid):
        authority().issue(certificates.new_request(certificates.new_key(), "mac"), name, NOW)


@pytest.mark.parametrize("name", ["a", "gpu-box.local", "mac_2", "x" * 63])
def test_names_that_are_accepted(name: str) -> None:
    assert certificates.checked_name(name) == name


@pytest.mark.parametrize("name", ["", "a b", "-a", "a..b", "*.example", "http://a", "a:7501", "x" * 64, "a\n"])
def test_server_names_that_are_refused(name: str) -> None:
    with pytest.raises(CertificateInvalid, match="expected a host name or an IP address"):
        certificates.checked_server_name(name)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\0\xff",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        pytest.param(issued().certificate[:200], id="cut"),
        pytest.param(issued().key, id="key"),
        pytest.param(b"x" * (certificates.MAX_PEM_BYTES + 1), id="large"),
    ],
)
def test_what_is_no_certificate(damaged: bytes) -> None:
    good = issued()
    for call in (
        lambda: certificates.describe(damaged),
        lambda: certificates.is_issued_by(damaged, good.certificate),
        lambda: certificates.is_issued_by(good.certificate, damaged),
        lambda: certificates.belong_together(damaged, good.key),
        lambda: authority().issue(damaged, "mac", NOW),
    ):
        with pytest.raises(CertificateInvalid, match="expected a "):
            call()


def test_private_keys_that_are_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encrypted = key.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret"))
    for damaged in (encrypted, issued().certificate, b""):
        with pytest.raises(CertificateInvalid, match="expected an unencrypted private key"):
            certificates.belong_together(issued().certificate, damaged)
        with pytest.raises(CertificateInvalid):
            certificates.new_request(damaged, "mac")


@pytest.mark.parametrize("kind", ["RSA", "Ed25519"])
def test_a_given_certificate_may_have_another_kind_of_key(kind: str) -> None:
    """Other authorities, such as cert-manager, issue these."""
    key = rsa.generate_private_key(65537, 1024) if kind == "RSA" else ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "box")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW, NOW + timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256() if kind == "RSA" else None).public_bytes(PEM)
    assert certificates.belong_together(certificate, pem(key))
    assert not certificates.belong_together(certificate, issued().key)
    assert certificates.describe(certificate).serial == "7"


def test_the_first_certificate_of_a_chain_counts() -> None:
    leaf, other = issued("leaf"), issued("other")
    chain = leaf.certificate + other.certificate
    assert certificates.describe(chain).name == "leaf" and certificates.belong_together(chain, leaf.key)
    assert certificates.canonical(b"a comment\n" + chain) == leaf.certificate


def test_what_is_an_authority() -> None:
    assert certificates.is_authority(authority().certificate)
    assert not certificates.is_authority(issued().certificate)
    certificate, key = certificates.self_signed("zrelay-pairing")
    found = certificates.describe(certificate)
    assert (found.name, found.server_names) == ("zrelay-pairing", ("zrelay-pairing",))
    assert certificates.belong_together(certificate, key) and certificates.is_issued_by(certificate, certificate)
