"""Divides the memory of this machine among the services of `zrelay up`, before any of them is started."""

import os
from typing import Any

from zrelay_client.stack.bundle import vision_model
from zrelay_client.stack.launch import StackOptions, dtype_of
from zrelay_shared import config, paths
from zrelay_shared.connection import joined_profiles
from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.service.local_device import local_device
from zrelay_shared.service.memory_plan import PlannedDevice, needs_of, plan_together
from zrelay_shared.service.roles import SERVICE_CONFIGS, ServiceConfig, VisionConfig
from zrelay_shared.vision_folders import with_engines


def budgets(options: StackOptions, device: PlannedDevice | None = None) -> dict[str, int]:
    """Returns the memory that each service may plan with.

    Args:
        options: The stack.
        device: Where the services run; None for the device of this machine.

    Returns:
        Role -> bytes. A service that is missing takes what is free: its budget is configured, its device differs from
        the others', or the platform does not report memory.

    Raises:
        OutOfMemory: MEMORY_PLAN, the services do not fit together.
        CheckpointError: A folder is incomplete.
    """
    if not options.memory_plan:
        return {}
    configs = {role: settings_of(role, options) for role in options.roles}
    shared = {
        role: settings
        for role, settings in configs.items()
        if settings.memory_budget_bytes is None and settings.memory_plan
    }
    kinds = {settings.device for settings in shared.values()}
    if len(kinds) != 1:
        return {}
    try:
        where = device or device_of(kinds.pop())
    except FailedPrecondition:  # only torch knows whether the device exists: each service plans for itself
        return {}
    return plan_together([needs_of(settings) for settings in shared.values()], where)


def device_of(requested: str) -> PlannedDevice:
    """Returns the device of services that this process starts. Raises FailedPrecondition (DEVICE_MISSING)."""
    return local_device(requested, os.environ)


def settings_of(role: str, options: StackOptions) -> ServiceConfig:
    """Returns the settings of a service as it will read them when `zrelay up` starts it."""
    flags: dict[str, Any] = {f"{role}.device": options.device, f"{role}.dtype": dtype_of(role, options)}
    flags[f"{role}.model"] = options.model
    if role == "vision":
        named = options.qwen3_vl is not None or options.siglip is not None
        beside = None if named else vision_model(options.model)
        flags |= {"vision.model": beside, "vision.qwen3_vl": options.qwen3_vl, "vision.siglip": options.siglip}
    return read_settings(role, None, flags)


def read_settings(role: str, profile: str | None, flags: dict[str, Any]) -> ServiceConfig:
    """Returns the settings of a service on this machine: flags first, then variables, then the configuration file."""
    kind = SERVICE_CONFIGS[role]
    found = config.load_service(
        kind, paths.config_file(), os.environ, profile=profile, flags=flags, joined=joined_profiles()
    )
    return with_engines(found) if isinstance(found, VisionConfig) else found
