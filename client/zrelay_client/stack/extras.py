"""Whether this installation can run a service, and what to install where it cannot."""

from importlib.util import find_spec

from zrelay_shared.errors import FeatureMissing

_NEEDS = {
    "encoder": ("torch", "transformers", "grpc_health", "grpc_reflection"),
    "vision": ("torch", "transformers", "PIL", "numpy", "grpc_health", "grpc_reflection"),
    "generator": ("torch", "diffusers", "transformers", "PIL", "numpy", "grpc_health", "grpc_reflection"),
}
"""Role -> modules that its extra installs."""


def require(*roles: str) -> None:
    """Checks that the roles can be served.

    Raises:
        FeatureMissing: Modules are missing; the message names all of them and what to install.
    """
    lacking = {role: missing for role in roles if (missing := [name for name in _NEEDS[role] if not _installed(name)])}
    if lacking:
        missing = list(dict.fromkeys(name for names in lacking.values() for name in names))
        raise FeatureMissing(
            f"this installation cannot serve the {' and the '.join(lacking)}: it lacks {', '.join(missing)}; "
            f"install what it needs: pip install 'zrelay[{','.join(lacking)}]'",
            metadata={"missing": ",".join(missing)},
        )


def module_of(role: str) -> str:
    """Returns the name of the module that serves a role.

    Raises:
        FeatureMissing: The module, or one that it needs, is not installed.
    """
    require(role)
    module = f"zrelay_{role}"
    if not _installed(module) or not _installed(f"{module}.__main__"):
        raise FeatureMissing(f"this installation has no {role} service: install the package of zrelay again")
    return module


def _installed(module: str) -> bool:
    return find_spec(module) is not None
