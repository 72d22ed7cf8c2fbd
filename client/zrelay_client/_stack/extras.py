"""Whether this installation can run a service, and the command that makes it so."""

from importlib.util import find_spec

from zrelay_shared.errors import FeatureMissing

_NEEDS = {
    "encoder": ("torch", "transformers", "grpc_health", "grpc_reflection"),
    "vision": ("torch", "transformers", "PIL", "numpy", "grpc_health", "grpc_reflection"),
    "generator": ("torch", "diffusers", "transformers", "PIL", "numpy", "grpc_health", "grpc_reflection"),
}
"""Role -> modules of its extra."""


def module_of(role: str) -> str:
    """The module that serves a role. Raises FeatureMissing where it or what it needs is not installed."""
    module = f"zrelay_{role}"
    if missing := [name for name in _NEEDS[role] if find_spec(name) is None]:
        raise FeatureMissing(
            f"this installation cannot serve the {role}: it lacks {', '.join(missing)}; "
            f"install the extra: pip install 'zrelay[{role}]'",
            metadata={"missing": ",".join(missing)},
        )
    if find_spec(module) is None or find_spec(f"{module}.__main__") is None:
        raise FeatureMissing(f"this version of zrelay has no {role} service yet")
    return module
