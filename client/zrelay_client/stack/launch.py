"""Starts one service as a process of its own, with its output in a log file."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from zrelay_client._transport.credentials import TlsOptions
from zrelay_client.stack.bundle import vision_model
from zrelay_client.stack.extras import module_of
from zrelay_client.stack.interpreter import child_environment, module_command
from zrelay_client.stack.processes import ProcessId, start_mark
from zrelay_client.stack.record import own_tls
from zrelay_shared import paths, private
from zrelay_shared.errors import FailedPrecondition, Unavailable, listed
from zrelay_shared.limits import BFLOAT16_WEIGHTS, DEFAULT_PORTS

_LAST_LINES = 15
_NEW_GROUP: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
"""Windows' counterpart of a session."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to run, and how.

    Attributes:
        model: Z-Image pipeline folder.
        state: State folder.
        logs: Folder of the services' logs.
        roles: The services to start.
        device, dtype: Settings of every service; None leaves them to the configuration of each.
        log_level: Least severe messages in the logs.
        grace_s: Seconds that running calls get when the services end.
        timeout_s: Seconds that the services may take to be ready.
        qwen3_vl, siglip: Checkpoints of the vision service, in place of those beside the model.
        memory_plan: Whether services that do not fit into the memory are refused.
        host: Address or name of this machine on which the services listen with TLS, on their default ports; None for
            free ports that other machines cannot reach.
    """

    model: Path
    state: Path
    logs: Path
    roles: tuple[str, ...] = ("encoder", "generator")
    device: str | None = None
    dtype: str | None = None
    log_level: str = "info"
    grace_s: float = 30.0
    timeout_s: float = 900.0
    qwen3_vl: Path | None = None
    siglip: Path | None = None
    memory_plan: bool = True
    host: str | None = None

    @property
    def security(self) -> Path:
        """The security folder, which `zrelay pair` makes."""
        return self.state / "security"

    @property
    def tls(self) -> TlsOptions | None:
        """How this machine connects to its own services: with the certificate that they show. None without TLS."""
        return None if self.host is None else own_tls(self.security)


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that was started for a role."""

    role: str
    popen: subprocess.Popen[bytes]
    process: ProcessId
    log: Path
    address_file: Path

    @property
    def address(self) -> str:
        """`host:port` once the service listens, "" before."""
        return private.read_text(self.address_file) if self.address_file.exists() else ""

    def last_lines(self) -> str:
        """Returns the end of its log, indented."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (the log is empty)"


def launch(role: str, options: StackOptions, budget_bytes: int | None = None) -> Launched:
    """Starts a service on a free port of this machine.

    The process gets a session of its own, so that Ctrl-C in the terminal reaches only the command that started it.

    Args:
        role: The service.
        options: What to run.
        budget_bytes: Memory that it may plan with; None for what is free.

    Raises:
        FeatureMissing: The service is not installed.
        Unavailable: The process ended at once.
        OSError: A file cannot be written.
    """
    module = module_of(role)
    private.make_folder(options.logs, paths.STATE_REMEDY)
    log = options.logs / f"{role}.log"
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    address_file = options.state / f"{role}.address"
    address_file.unlink(missing_ok=True)
    with private.open_file(log, "wb") as output:
        popen = subprocess.Popen(
            module_command(module, *_flags(role, options, address_file, budget_bytes)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            creationflags=_NEW_GROUP,
            env={**child_environment(), "ZRELAY_STATE": str(options.state)},
        )
    while (mark := start_mark(popen.pid)) is None and popen.poll() is None:
        time.sleep(0.01)
    launched = Launched(role, popen, ProcessId(popen.pid, mark or "ended"), log, address_file)
    if mark is None:
        raise Unavailable(f"the {role} ended at once; its last lines:\n{launched.last_lines()}")
    return launched


def _flags(role: str, options: StackOptions, address_file: Path, budget_bytes: int | None) -> list[str]:
    flags = _vision_folders(options) if role == "vision" else ["--model", str(options.model)]
    listen = "127.0.0.1:0" if options.host is None else _listen(options.host, role)
    flags += ["--listen", listen, "--address-file", str(address_file)]
    flags += ["--log-level", options.log_level, "--grace-s", f"{options.grace_s:g}"]
    for name, value in (("--device", options.device), ("--dtype", dtype_of(role, options))):
        flags += [name, value] if value is not None else []
    if budget_bytes is not None:
        flags += ["--memory-budget-mib", str(max(1, budget_bytes >> 20))]
    return flags if options.memory_plan else [*flags, "--no-memory-plan"]


def _listen(host: str, role: str) -> str:
    return f"[{host}]:{DEFAULT_PORTS[role]}" if ":" in host else f"{host}:{DEFAULT_PORTS[role]}"


def check_host(host: str, security: Path) -> None:
    """Checks that services can listen on an address of this machine with TLS.

    Raises:
        FailedPrecondition: NOT_PAIRED, there are no certificates, or they are not valid for this address.
    """
    from zrelay_shared.security.certificates import describe
    from zrelay_shared.security.installation import Installation

    installation = Installation(security)
    remedy = f"run `zrelay pair --address {host}` on this machine first"
    if not installation.prepared:
        raise FailedPrecondition(
            f"--host {host}: expected certificates in {security}, got none: {remedy}", reason="NOT_PAIRED"
        )
    names = describe(installation.server_pair[1]).server_names
    if host.lower() not in names:
        raise FailedPrecondition(
            f"--host {host}: expected a name of the certificate of this machine ({listed(names)}), got another: use "
            f"one of these, or {remedy}",
            reason="NOT_PAIRED",
        )


def dtype_of(role: str, options: StackOptions) -> str | None:
    """Returns the dtype of a service, None for that of its configuration.

    The vision service has no bfloat16-weights and chooses for itself.
    """
    return None if role == "vision" and options.dtype == BFLOAT16_WEIGHTS else options.dtype


def _vision_folders(options: StackOptions) -> list[str]:
    named = (("--qwen3-vl", options.qwen3_vl), ("--siglip", options.siglip))
    flags = [part for name, folder in named if folder is not None for part in (name, str(folder))]
    beside = vision_model(options.model)
    return ["--model", str(beside)] if not flags and beside is not None else flags
