"""`zrelay serve`: becomes the process of one service."""

import os
import sys
from pathlib import Path

import click

from zrelay_client import _settings
from zrelay_client.cli._flags import PLACE, profile_option
from zrelay_shared.errors import InvalidArgument

_ROLES = ("encoder", "generator", "vision")
_LEVELS = ("debug", "info", "warning", "error")


@click.command("serve")
@click.argument("role", type=click.Choice(_ROLES))
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- MORE]")
@click.option(
    "--model",
    type=PLACE,
    metavar="FOLDER",
    help="Z-Image pipeline folder; an encoder also takes a bare Qwen3 folder.",
)
@click.option("--listen", metavar="HOST:PORT", help="Default: 127.0.0.1 and the role's own port.")
@click.option("--insecure-listen", is_flag=True, default=None, help="Listen beyond this machine without encryption.")
@click.option("--device", metavar="NAME", help="cuda, mps or cpu. Default: the best there is.")
@click.option("--dtype", metavar="NAME", help="bfloat16, float16 or float32. Default: what suits the device.")
@click.option("--log-level", type=click.Choice(_LEVELS), help="Default: info.")
@click.option("--grace-s", type=float, metavar="SECONDS", help="For running work after SIGTERM. Default: 30.")
@click.option("--address-file", type=PLACE, metavar="FILE", help="Where to write HOST:PORT once it listens.")
@profile_option("Profile of the configuration file.")
def command(
    role: str,
    more: tuple[str, ...],
    model: str | None,
    listen: str | None,
    insecure_listen: bool | None,
    device: str | None,
    dtype: str | None,
    log_level: str | None,
    grace_s: float | None,
    address_file: str | None,
    profile: str | None,
) -> None:
    """Run the service ROLE in the foreground: encoder, generator or vision.

    MORE is passed on to the service: `zrelay serve generator -- --help` lists flags of its own, such as --max-steps.

    Settings come from flags, ZRELAY_<ROLE>_* variables, or the table [profile.NAME.ROLE] of the configuration file.
    """
    given = {
        "model": model,
        "listen": listen,
        "insecure_listen": insecure_listen,
        "device": device,
        "dtype": dtype,
        "log_level": log_level,
        "grace_s": grace_s,
    }
    settings = _settings.load(profile, {f"{role}.{key}": value for key, value in given.items()}).service(role)
    from zrelay_client._stack.extras import module_of

    module = module_of(role)
    if settings.model is None and role != "vision" and "--help" not in more:
        raise InvalidArgument(
            f"which model shall the {role} serve? Pass --model FOLDER, or set `model` in [profile.NAME.{role}] of the "
            "configuration file; `zrelay up` runs the demo checkpoint",
            field="model",
            reason="MODEL_MISSING",
        )
    # A model of a file or variable: no shell has expanded it.
    flags = ["--model", str(Path(settings.model).expanduser())] if settings.model is not None else []
    for name in ("listen", "device", "dtype", "log_level"):
        if (value := getattr(settings, name)) is not None:
            flags += [f"--{name.replace('_', '-')}", value]
    flags += ["--grace-s", f"{settings.grace_s:g}"] if settings.grace_s is not None else []
    flags += ["--insecure-listen"] if settings.insecure_listen else []
    flags += ["--address-file", address_file] if address_file is not None else []
    os.execv(sys.executable, [sys.executable, "-m", module, *flags, *more])
