"""The certificate that a service shows. It is read again when its files change, so that no restart is needed."""

import contextlib
import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import grpc

from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.security import certificates
from zrelay_shared.security.certificates import CertificateInfo, CertificateInvalid

log = logging.getLogger(__name__)
WARN_DAYS = 30
"""Days before the end of the certificate from which on the log warns of it, once a day."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM.

    Attributes:
        certificate: Certificate of the service, first in its chain.
        key: Its private key, not encrypted.
        authority: The certificates of the authorities whose clients are admitted.
        remedy: What to do where one of them cannot be used.
    """

    certificate: Path
    key: Path
    authority: Path
    remedy: str


class ServerCertificate:
    """The certificate of a service with its key and the authority of its clients. Threads may share it.

    New files take the place of those in use with the next handshake. If they cannot be used, those in use stay, and the
    log has the reason.
    """

    def __init__(self, files: TlsFiles, clock: Callable[[], datetime]) -> None:
        """Reads the files.

        Args:
            files: Where they are.
            clock: The present time, in UTC.

        Raises:
            FailedPrecondition: CERTIFICATE_UNUSABLE, one of the files is missing, damaged or belongs to another one.
        """
        self._files, self._clock = files, clock
        self._lock = threading.Lock()
        self._warned: datetime | None = None
        self._version = 0
        self._state = self._look()
        self._info, self._configuration = self._load()

    @property
    def info(self) -> CertificateInfo:
        """What the certificate in use says."""
        return self._info

    def refresh(self) -> None:
        """Reads the files again if they have changed."""
        with self._lock:
            state = self._look()  # before the files are read: a change in between is seen the next time
            if state == self._state:
                return
            self._state = state
            try:
                self._info, self._configuration = self._load()
            except FailedPrecondition as error:
                log.error("the new certificate is not used, and the previous one stays in use: %s", error.message)
                return
            self._version += 1
            self._warned = None
        log.info("uses the new certificate of %s, valid until %s", self._info.name, f"{self._info.not_after:%Y-%m-%d}")

    def warn(self) -> None:
        """Logs a warning if the certificate ends soon, at most once a day."""
        now, ends = self._clock(), self._info.not_after
        if ends - now > timedelta(days=WARN_DAYS):
            return
        if self._warned is None or now - self._warned >= timedelta(days=1):
            self._warned = now
            what = f"ends in {(ends - now).days} days" if ends > now else "has ended, so that no client connects"
            log.warning("the certificate of this service %s (%s): %s", what, f"{ends:%Y-%m-%d}", self._files.remedy)

    def credentials(self, *, of_clients: bool) -> grpc.ServerCredentials:
        """Returns the credentials of a port.

        Args:
            of_clients: Whether clients must show a certificate of the authority.
        """
        with self._lock:
            used, configuration = self._version, self._configuration

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Returns the certificate for a handshake, None for the present one. gRPC calls it each time."""
            nonlocal used
            self.refresh()
            with self._lock:
                if self._version == used:
                    return None
                used = self._version
                return self._configuration

        return grpc.dynamic_ssl_server_credentials(
            configuration,
            fetch,  # type: ignore[arg-type]  # its types forget None
            require_client_authentication=of_clients,
        )

    def client_context(self) -> ssl.SSLContext:
        """Returns settings with which the service connects to its own ports, whose certificate it does not check."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with contextlib.suppress(OSError):  # without it the server refuses the connection, which is an answer, too
            context.load_cert_chain(self._files.certificate, self._files.key)
        return context

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_state(path) for path in (self._files.certificate, self._files.key, self._files.authority))

    def _load(self) -> tuple[CertificateInfo, grpc.ServerCertificateConfiguration]:
        files = self._files
        path = files.certificate
        try:
            certificate = _read(path)
            info = certificates.describe(certificate)
            path = files.key
            key = _read(path)
            if not certificates.belong_together(certificate, key):
                raise CertificateInvalid(f"expected the key of {files.certificate}, got another one")
            path = files.authority
            authority = _read(path)
            certificates.describe(authority)
        except (OSError, CertificateInvalid) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise FailedPrecondition(f"{path}: {why}; {files.remedy}", reason="CERTIFICATE_UNUSABLE") from error
        return info, grpc.ssl_server_certificate_configuration([(key, certificate)], authority)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(certificates.MAX_PEM_BYTES + 1)
