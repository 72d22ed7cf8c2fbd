"""The generator's settings. They are defined in the service kit, where the client can read them, too."""

from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.service.worker import serving_threads

__all__ = ["GeneratorConfig", "serving_threads"]
