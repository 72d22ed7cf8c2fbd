"""Holds the forward passes of a model, so that a test decides when each one runs."""

import threading

import torch


class ForwardGate:
    """Counts the forward passes of a module, and lets each one run only when it is permitted.

    Attributes:
        started: Forward passes that began, the one that waits for its permit included.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.started = 0
        self._permits = threading.Semaphore(0)
        self._hook = module.register_forward_pre_hook(self._wait)

    def permit(self, passes: int = 1) -> None:
        """Lets `passes` more forward passes run."""
        self._permits.release(passes)

    def remove(self) -> None:
        """Lets every later forward pass run at once."""
        self._hook.remove()

    def _wait(self, module: torch.nn.Module, args: object) -> None:
        self.started += 1
        self._permits.acquire()
