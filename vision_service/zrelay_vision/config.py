"""The vision service's settings. They are defined in the service kit, so that the client can read them too."""

from zrelay_shared.service.roles import VisionConfig

__all__ = ["VisionConfig"]
