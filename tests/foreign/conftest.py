"""Real services on the demo checkpoint, in plaintext and with TLS, and what their callers need."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.servers import ServerThread
from zrelay_client.stack.bundle import demo_checkpoint
from zrelay_encoder.api.servicer import EncoderServicer
from zrelay_encoder.config import EncoderConfig
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.security import certificates
from zrelay_shared.security.installation import Installation
from zrelay_shared.security.permissions import CALLER
from zrelay_shared.service import authentication
from zrelay_shared.service.lifecycle import ServeOptions, Service
from zrelay_shared.service.listening import ListenAddress
from zrelay_shared.service.roles import GeneratorConfig

ROOT = Path(__file__).parents[2]
_FREE = ListenAddress("127.0.0.1", 0)


@dataclass(frozen=True)
class Access:
    """How a caller reaches the services.

    Attributes:
        encoder, generator: HOST:PORT.
        files: Files of the caller: "ca", "cert" and "key", or "ca" and "token".
    """

    encoder: str
    generator: str
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def flags(self) -> list[str]:
        """The flags of the programs of this folder."""
        flags = ["--encoder", self.encoder, "--generator", self.generator]
        return flags + [word for name, path in self.files.items() for word in (f"--{name}", str(path))]


@pytest.fixture(scope="session")
def accesses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Access]]:
    """The ways to reach an encoder and a generator: "plaintext", "certificate" and "token"."""
    folder = tmp_path_factory.mktemp("services")
    files = _credentials(folder)
    security = authentication.installed(folder / "security", None, authentication.utc_now)
    servers = ServerThread()
    try:
        encoder, generator = (servers.run(one, ServeOptions(_FREE)) for one in _services(folder / "plaintext"))
        plaintext = Access(str(encoder.address), str(generator.address))
        options = ServeOptions(_FREE, tls=True, security=security, token_listen=_FREE)
        encoder, generator = (servers.run(one, options) for one in _services(folder / "secured"))
        member, token = _some(files, "ca", "cert", "key"), _some(files, "ca", "token")
        yield {
            "plaintext": plaintext,
            "certificate": Access(str(encoder.address), str(generator.address), member),
            "token": Access(str(encoder.token_address), str(generator.token_address), token),
        }
    finally:
        servers.stop()


@pytest.fixture(params=["plaintext", "certificate", "token"])
def access(request: pytest.FixtureRequest, accesses: dict[str, Access]) -> Access:
    """Each way to reach the services."""
    return accesses[request.param]


def run(*command: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, in a folder."""
    return subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def _services(folder: Path) -> tuple[Service, Service]:
    """An encoder and a generator. A job without a watcher ends after a second."""
    encoder = EncoderServicer(EncoderConfig(model=demo_checkpoint(), threads=1))
    generator = GeneratorConfig(model=demo_checkpoint(), threads=1, state=folder / "state", lease_s=1.0)
    return encoder, GeneratorServicer(generator)


def _credentials(folder: Path) -> dict[str, Path]:
    """Writes what `zrelay pair` and `zrelay join` would, and returns the files of a caller."""
    installation = Installation(folder / "security")
    installation.prepare("box", ["127.0.0.1", "localhost"])
    files = {name: folder / f"caller.{name}" for name in ("cert", "key", "token")}
    key = certificates.new_key()
    files["key"].write_bytes(key)
    files["cert"].write_bytes(installation.issue(certificates.new_request(key, "caller"), "caller"))
    files["token"].write_text(installation.new_token("script", CALLER) + "\n")
    return {"ca": folder / "security/authority.pem", **files}


def _some(files: dict[str, Path], *names: str) -> dict[str, Path]:
    return {name: files[name] for name in names}
