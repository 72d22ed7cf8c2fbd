"""The security folder of an installation: authority, server certificate, members and tokens.

    authority.pem, authority.key    the certificate authority of this installation
    server.pem, server.key          the certificate that the services show
    members.json                    the certificates that were issued: name, serial, permissions, validity
    tokens.json                     hashes of bearer tokens

Every file is private to its owner and written atomically. A lock file serialises changes; readers need no lock.
"""

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout

from zrelay_shared import atomic
from zrelay_shared.errors import FailedPrecondition, NotFound
from zrelay_shared.security import certificates
from zrelay_shared.security.permissions import CALLER, Permission
from zrelay_shared.security.tokens import MAX_TOKEN_CHARACTERS, TOKEN_PREFIX

log = logging.getLogger(__name__)
MAX_MEMBERS, MAX_TOKENS = 1000, 1000
_MEMBERS, _TOKENS = "members.json", "tokens.json"
_VERSION = 1
_MAX_FILE_BYTES = 1 << 20
_MAX_SERVER_NAMES = 64
_LOCK_S = 10.0
"""Seconds to wait for another process that changes the folder."""
RENEW_DAYS = 30
"""Days before its end from which on a certificate is reported and can be renewed automatically."""


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """A certificate that the authority has issued.

    Attributes:
        name: Name of the machine, person or script.
        serial: Serial number of the certificate, hexadecimal.
        permissions: What its owner may do.
        issued, expires: Validity, ISO 8601 in UTC.
        revoked: When it was revoked, "" if it is valid.
    """

    name: str
    serial: str
    permissions: tuple[str, ...]
    issued: str
    expires: str
    revoked: str = ""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A bearer token, of which only the hash is kept. It has 256 random bits, so that a plain SHA-256 is enough.

    Attributes:
        name: Name of the person or script.
        sha256: Hash of the token, hexadecimal.
        permissions: What its owner may do.
        created: ISO 8601 in UTC.
        expires: When it ends, "" for never. A replaced token ends after the overlap.
    """

    name: str
    sha256: str
    permissions: tuple[str, ...]
    created: str
    expires: str = ""


R = TypeVar("R", bound=MemberRecord | TokenRecord)


class _RecordFile(Generic[R]):
    """A file of records, which is read again when it has changed."""

    def __init__(self, path: Path, kind: Callable[..., R]) -> None:
        self._path, self._kind = path, kind
        self._cached: tuple[tuple[int, int, int], tuple[R, ...]] | None = None

    def read(self) -> tuple[R, ...]:
        """Returns the records, none if the file does not exist.

        Raises:
            FailedPrecondition: SECURITY_FILE_DAMAGED, the file holds something else.
            OSError: The file cannot be read.
        """
        try:
            found = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return ()
        state = (found.st_mtime_ns, found.st_size, found.st_ino)
        if self._cached is None or self._cached[0] != state:
            self._cached = state, self._load()
        return self._cached[1]

    def write(self, records: Sequence[R]) -> None:
        """Replaces the file."""
        content = {"version": _VERSION, "records": [asdict(each) for each in records]}
        atomic.write_bytes(self._path, json.dumps(content, indent=1).encode(), private=True)

    def _load(self) -> tuple[R, ...]:
        with self._path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        try:
            if len(data) > _MAX_FILE_BYTES:
                raise ValueError(f"expected at most {_MAX_FILE_BYTES} bytes")
            found = json.loads(data)
            if found["version"] != _VERSION:
                raise ValueError(f"expected version {_VERSION}, got {str(found['version'])[:20]}")
            return tuple(self._record(each) for each in found["records"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FailedPrecondition(
                f"{self._path} is damaged ({str(error)[:200]}): restore it from a backup, or remove it and pair the "
                "machines again",
                reason="SECURITY_FILE_DAMAGED",
            ) from error

    def _record(self, values: dict[str, Any]) -> R:
        permissions = [Permission(each).value for each in values["permissions"]]
        record = self._kind(**{**values, "permissions": tuple(permissions)})
        for each in fields(record):
            value = getattr(record, each.name)
            if each.name != "permissions" and not isinstance(value, str):
                raise TypeError(f"{each.name}: expected a string, got {type(value).__name__}")
            if each.name in ("issued", "created", "expires", "revoked") and value:
                datetime.fromisoformat(value)
        return record


class Installation:
    """The security folder. Cheap to make; nothing is read before it is needed."""

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        tokens: Path | None = None,
        lock_s: float = _LOCK_S,
    ) -> None:
        """Names the folder.

        Args:
            folder: The folder; `prepare` creates it.
            clock: The present time, in UTC.
            tokens: A file of token records that takes the place of the folder's own.
            lock_s: Seconds to wait for another process that changes the folder.
        """
        self.folder, self._clock, self._lock_s = folder, clock, lock_s
        self._members = _RecordFile(folder / _MEMBERS, MemberRecord)
        self._tokens = _RecordFile(tokens or folder / _TOKENS, TokenRecord)

    @property
    def now(self) -> datetime:
        """The present time."""
        return self._clock()

    @property
    def prepared(self) -> bool:
        """Whether there is an authority and a server certificate."""
        return all((self.folder / name).is_file() for name in ("authority.pem", "server.pem", "server.key"))

    @property
    def authority_certificate(self) -> bytes:
        """The certificate of the authority. Raises FailedPrecondition if there is none."""
        return self._read("authority.pem")

    @property
    def server_pair(self) -> tuple[bytes, bytes]:
        """Key and certificate of the services. Raises FailedPrecondition if there are none."""
        return self._read("server.key"), self._read("server.pem")

    def prepare(self, name: str, server_names: Sequence[str]) -> bool:
        """Makes what is missing: authority and server certificate.

        A further name of the server needs a new certificate, which is valid for the earlier names too: members may
        know the server by one of them.

        Args:
            name: Name of this machine.
            server_names: Host names and addresses under which callers reach it.

        Returns:
            Whether anything was made.

        Raises:
            CertificateInvalid: A name cannot be used.
            OSError: The folder cannot be written.
        """
        with self._changing():
            made = False
            if not (self.folder / "authority.pem").is_file() or not (self.folder / "authority.key").is_file():
                authority = certificates.Authority.create(f"zrelay authority of {name}", self._clock())
                self._write("authority.key", authority.key)
                self._write("authority.pem", authority.certificate)
                made = True
            if made or not self._serves(server_names):
                known = self._known_names()
                self._issue_server(name, [*server_names, *known][: max(_MAX_SERVER_NAMES, len(server_names))])
                made = True
            return made

    def renew_server(self) -> certificates.CertificateInfo:
        """Issues the server certificate again, with a new key, for the same names. Returns what it says.

        Raises:
            FailedPrecondition: There is none.
        """
        with self._changing():
            found = certificates.describe(self._read("server.pem"))
            self._issue_server(found.name, found.server_names)
            return certificates.describe(self._read("server.pem"))

    def issue(
        self, request: bytes, name: str, permissions: frozenset[Permission] = CALLER, *, only_new: bool = False
    ) -> bytes:
        """Issues a certificate to a member, and replaces an earlier one of the same name, which is revoked.

        Args:
            request: The signing request of the member's key.
            name: The member's name.
            permissions: What the member may do.
            only_new: Whether a name is refused that a member has or had. What belongs to a caller belongs to its name.

        Raises:
            CertificateInvalid: Request or name cannot be used.
            FailedPrecondition: There is no authority, there are too many members, or the name is not new.
        """
        with self._changing():
            members = self.members()
            if only_new and any(each.name == name for each in members):
                raise FailedPrecondition(
                    f"the name {name!r} belongs to a member already: choose another with `zrelay join --name`; if this "
                    f"is the same machine, run `zrelay pair --renew {name}` on the other one, which replaces its "
                    "certificate",
                    reason="NAME_TAKEN",
                )
            if len(members) >= MAX_MEMBERS:
                raise FailedPrecondition(
                    f"this installation has issued {MAX_MEMBERS} certificates, the most that it may: remove revoked "
                    f"ones from {self.folder / _MEMBERS}",
                    reason="MEMBERS_LIMIT",
                )
            certificate = self._authority().issue(request, name, self._clock())
            found = certificates.describe(certificate)
            now = _text(self._clock())
            kept = [replace(each, revoked=now) if each.name == name and not each.revoked else each for each in members]
            kept.append(MemberRecord(name, found.serial, tuple(sorted(permissions)), now, _text(found.not_after)))
            self._members.write(kept)
            return certificate

    def revoke(self, name: str) -> int:
        """Revokes a member's certificates and tokens. Returns how many.

        Raises:
            NotFound: There is neither a valid certificate nor a token of this name.
        """
        with self._changing():
            now = _text(self._clock())
            members, tokens = self.members(), self.tokens()
            hit = [each for each in members if each.name == name and not each.revoked]
            ended = [each for each in tokens if each.name == name]
            if not hit and not ended:
                known = sorted({each.name for each in members if not each.revoked} | {each.name for each in tokens})
                names = ", ".join(known[:20]) or "none"
                raise NotFound(
                    f"no valid certificate or token belongs to {name[:63]!r}; there are: {names}",
                    reason="MEMBER_UNKNOWN",
                )
            self._members.write([replace(e, revoked=now) if e in hit else e for e in members])
            self._tokens.write([each for each in tokens if each not in ended])
            return len(hit) + len(ended)

    def new_token(self, name: str, permissions: frozenset[Permission], *, overlap: timedelta = timedelta(0)) -> str:
        """Makes a bearer token, and ends earlier ones of the same name.

        Args:
            name: Name of the person or script.
            permissions: What the token allows.
            overlap: How long earlier tokens of this name stay valid.

        Returns:
            The token. It is not kept, and cannot be shown again.

        Raises:
            CertificateInvalid: The name cannot be used.
            FailedPrecondition: There are too many tokens.
        """
        certificates.checked_name(name)
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        with self._changing():
            now = self._clock()
            ends = _text(now + overlap)
            kept = [
                replace(each, expires=min(each.expires or ends, ends)) if each.name == name else each
                for each in self.tokens()
                if not each.expires or each.expires > _text(now)
            ]
            if len(kept) >= MAX_TOKENS:
                raise FailedPrecondition(
                    f"this installation has {MAX_TOKENS} tokens, the most that it may have; revoke some",
                    reason="TOKENS_LIMIT",
                )
            kept.append(TokenRecord(name, _hash(token), tuple(sorted(permissions)), _text(now)))
            self._tokens.write(kept)
        return token

    def latest(self, name: str) -> MemberRecord:
        """Returns the last certificate that was issued to a member, also if it is revoked.

        Raises:
            NotFound: There is none.
        """
        found = [each for each in self.members() if each.name == name]
        if not found:
            names = ", ".join(sorted({each.name for each in self.members()})[:20]) or "none"
            raise NotFound(f"no member has the name {name[:63]!r}; there are: {names}", reason="MEMBER_UNKNOWN")
        return found[-1]

    def members(self) -> tuple[MemberRecord, ...]:
        """Returns all certificates that were issued, the revoked ones too."""
        return self._members.read()

    def tokens(self) -> tuple[TokenRecord, ...]:
        """Returns the records of all tokens."""
        return self._tokens.read()

    def member_of(self, serial: str) -> MemberRecord | None:
        """Returns the record of the certificate with a serial number, also if it is revoked; None if there is none."""
        return next((each for each in self.members() if each.serial == serial), None)

    def token_of(self, token: str) -> TokenRecord | None:
        """Returns the record of a token, also if it has ended; None if there is none.

        Every hash is compared in constant time.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            return None
        hashed, match = _hash(token), None
        for each in self.tokens():
            if hmac.compare_digest(each.sha256, hashed):
                match = each
        return match

    def _serves(self, server_names: Sequence[str]) -> bool:
        """Returns whether the server certificate is from this authority, for these names, and valid for some time."""
        try:
            pem = (self.folder / "server.pem").read_bytes()
            key = (self.folder / "server.key").read_bytes()
            found = certificates.describe(pem)
            fits = certificates.belong_together(pem, key)
            ours = certificates.is_issued_by(pem, self.authority_certificate)
        except (OSError, certificates.CertificateInvalid):
            return False
        has = set(found.server_names)
        wanted = {certificates.checked_server_name(name) for name in server_names}
        return fits and ours and wanted <= has and found.not_after - self._clock() > timedelta(days=RENEW_DAYS)

    def _known_names(self) -> tuple[str, ...]:
        """Returns the names of the present server certificate, none if it cannot be read."""
        try:
            return certificates.describe((self.folder / "server.pem").read_bytes()).server_names
        except (OSError, certificates.CertificateInvalid):
            return ()

    def _issue_server(self, name: str, server_names: Sequence[str]) -> None:
        key = certificates.new_key()
        request = certificates.new_request(key, name)
        certificate = self._authority().issue(request, name, self._clock(), server_names=server_names)
        self._write("server.key", key)
        self._write("server.pem", certificate)

    def _authority(self) -> certificates.Authority:
        return certificates.Authority(self._read("authority.pem"), self._read("authority.key"))

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            with path.open("rb") as file:
                return file.read(certificates.MAX_PEM_BYTES + 1)
        except FileNotFoundError:
            raise FailedPrecondition(
                f"{path} is missing: run `zrelay pair` on this machine, as the user of the services",
                reason="NOT_PAIRED",
            ) from None

    def _write(self, name: str, data: bytes) -> None:
        atomic.write_bytes(self.folder / name, data, private=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "lock", timeout=self._lock_s, mode=0o600):
                yield
        except Timeout:
            raise FailedPrecondition(
                f"another process has changed {self.folder} for {self._lock_s:.0f} s: end it, or try again",
                reason="SECURITY_FOLDER_LOCKED",
            ) from None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
