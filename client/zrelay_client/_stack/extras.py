"""Whether this installation can run a service, and the command that makes it so."""

from importlib.util import find_spec

from zrelay_shared.errors import FeatureMissing

_NEEDS = {
    "encoder": ("torch", "transformers", "grpc_health", "grpc_reflection"),
    "vision": ("torch", "transformers", "PIL", "numpy", "grpc_health", "grpc_reflection"),
    "generator": ("torch", "diffusers", "transformers", "PIL", "numpy", "grpc_health", "grpc_reflection"),
}
"""Role -> modules of its extra."""


def require(*roles: str) -> None:
    """Raises FeatureMissing, naming all that is missing, where one of the roles cannot be served."""
    lacking = {role: missing for role in roles if (missing := [name for name in _NEEDS[role] if not _is_there(name)])}
    if lacking:
        missing = list(dict.fromkeys(name for names in lacking.values() for name in names))
        raise FeatureMissing(
            f"this installation cannot serve the {' and the '.join(lacking)}: it lacks {', '.join(missing)}; "
            f"install what it needs: pip install 'zrelay[{','.join(lacking)}]'",
            metadata={"missing": ",".join(missing)},
        )


def module_of(role: str) -> str:
    """The module that serves a role. Raises FeatureMissing where it or what it needs is not installed."""
    require(role)
    module = f"zrelay_{role}"
    if not _is_there(module) or not _is_there(f"{module}.__main__"):
        raise FeatureMissing(f"this version of zrelay has no {role} service yet")
    return module


def _is_there(module: str) -> bool:
    return find_spec(module) is not None
