"""The ports of a service, and what secures them, from its settings.

Loopback needs nothing. A port that other machines can reach has TLS and authenticates its callers, or the service does
not start, unless `--insecure-listen` permits it.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zrelay_shared import paths
from zrelay_shared.errors import FailedPrecondition, invalid, invalid_from
from zrelay_shared.security.permissions import parse_permissions
from zrelay_shared.service.listening import ListenAddress, parse_listen
from zrelay_shared.service.roles import ServiceConfig

if TYPE_CHECKING:
    from zrelay_shared.service.authentication import ServerSecurity

_NO_FOLDER = Path(os.devnull)
_FILES = ("authority.pem", "server.pem", "server.key")


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a service.

    Attributes:
        listen: Its main port.
        tls: Whether the main port has TLS, and its callers show certificates.
        token_listen: Port with TLS for callers that send tokens, None for none.
        health_listen: Port that answers health checks in plaintext, None for none.
    """

    listen: ListenAddress
    tls: bool
    token_listen: ListenAddress | None
    health_listen: ListenAddress | None

    @property
    def secured(self) -> bool:
        """Whether a port has TLS."""
        return self.tls or self.token_listen is not None


def ports_of(settings: ServiceConfig) -> Ports:
    """Reads the addresses of a service, and checks that no port is open to other machines without protection.

    Raises:
        InvalidArgument: LISTEN_INVALID; LISTEN_INSECURE; LISTEN_CONFLICT; TLS_FILES_INCOMPLETE.
        FailedPrecondition: NOT_PAIRED, a port needs certificates, and there are none.
    """
    has_certificates = _given_files(settings) is not None or _is_prepared(settings.security)
    if settings.tls and settings.insecure_listen:
        raise invalid(
            "tls", "--tls or --insecure-listen", "both", reason="LISTEN_CONFLICT", remedy="leave one of them out"
        )
    listen = parse_listen(settings.listen, insecure=settings.insecure_listen, secured=has_certificates)
    ports = Ports(
        listen,
        settings.tls or not (listen.loopback or settings.insecure_listen),
        _optional(settings.token_listen, "token_listen"),
        _optional(settings.health_listen, "health_listen"),
    )
    if ports.secured and not has_certificates:
        raise FailedPrecondition(
            f"{'--token-listen' if ports.token_listen else '--tls'} needs the certificates of this machine, and "
            f"{settings.security or paths.security_dir()} has none: run `zrelay pair` on this machine, as the user of "
            "the service, or name given ones with --tls-certificate, --tls-key and --tls-ca",
            reason="NOT_PAIRED",
        )
    return ports


def security_of(settings: ServiceConfig) -> "ServerSecurity":
    """Returns the certificate of a service, and who its callers are. Loads cryptography.

    Raises:
        InvalidArgument: TLS_PERMISSIONS_INVALID.
        FailedPrecondition: CERTIFICATE_UNUSABLE.
    """
    from zrelay_shared.security.installation import Installation
    from zrelay_shared.service import authentication, tls

    folder = settings.security or _NO_FOLDER
    files = _given_files(settings)
    if files is None:
        return authentication.installed(folder, settings.tokens, authentication.utc_now)
    try:
        permissions = parse_permissions(settings.tls_permissions)
    except ValueError as error:
        raise invalid_from("tls_permissions", error) from error
    certificate = tls.ServerCertificate(
        tls.TlsFiles(*files, "renew the files of --tls-certificate, --tls-key and --tls-ca"), authentication.utc_now
    )
    tokens = Installation(folder, tokens=settings.tokens)
    return authentication.given(certificate, permissions, tokens, authentication.utc_now)


def _given_files(settings: ServiceConfig) -> tuple[Path, Path, Path] | None:
    """Returns certificate, key and authority where the settings name them. Raises InvalidArgument."""
    certificate, key, authority = settings.tls_certificate, settings.tls_key, settings.tls_ca
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None or authority is None:
        raise invalid(
            "tls_certificate",
            "--tls-certificate, --tls-key and --tls-ca together",
            "one or two of them",
            reason="TLS_FILES_INCOMPLETE",
        )
    return certificate, key, authority


def _is_prepared(folder: Path | None) -> bool:
    return folder is not None and all((folder / name).is_file() for name in _FILES)


def _optional(text: str | None, setting: str) -> ListenAddress | None:
    return None if text is None else parse_listen(text, secured=True, setting=setting)
