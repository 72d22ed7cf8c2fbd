"""Fake services for tests of programs that use zrelay. They need no model, no torch and no numpy.

    from zrelay_client.testing import FakeServices

    with FakeServices() as fake, fake.client() as client:
        result = client.generate("a red fox", seed=7)
        assert fake.encoder.prompts == ["a red fox"]

The fakes are gRPC servers on free loopback ports that implement the contract zrelay.v1, so that the program under test
uses the real client. Embeddings and images are small and depend only on the request: an image has one colour, the
requested size, and provenance of the same form as a generator's.
"""

from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

from zrelay_client.testing.encoder import FakeEncoder
from zrelay_client.testing.generator import FakeGenerator
from zrelay_client.testing.service import FakeService, RecordedCall, ServerThread
from zrelay_client.testing.vision import FakeVision

if TYPE_CHECKING:
    from zrelay_client import AsyncClient, Client

__all__ = ["FakeEncoder", "FakeEndpoints", "FakeGenerator", "FakeService", "FakeServices", "FakeVision", "RecordedCall"]


class FakeEndpoints(TypedDict):
    """Endpoints as keywords of `Client` and `AsyncClient`."""

    encoder: str
    vision: str
    generator: str


class FakeServices:
    """A fake encoder, vision service and generator, which run while the `with` block does.

    Attributes:
        encoder, vision, generator: The services: their recorded calls, their settings, and failures on request.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        text_limit: int = 512,
        side: int = 64,
        steps: int = 4,
        max_waiting: int = 16,
        step_s: float = 0.0,
    ) -> None:
        """Creates the services; `start` or the `with` block serves them.

        Args:
            width: Width of an embedding.
            text_limit: Tokens of a prompt, at most.
            side: Default width and height of an image in pixels.
            steps: Default number of steps.
            max_waiting: Jobs that may wait at the generator.
            step_s: Seconds that one step takes.
        """
        self.encoder = FakeEncoder(width=width, text_limit=text_limit)
        self.vision = FakeVision(width=width)
        self.generator = FakeGenerator(
            width=width, text_limit=text_limit, side=side, steps=steps, max_waiting=max_waiting, step_s=step_s
        )
        self._thread: ServerThread | None = None

    @property
    def endpoints(self) -> FakeEndpoints:
        """The endpoints as keywords: `Client(**fake.endpoints)`."""
        return {
            "encoder": self.encoder.endpoint,
            "vision": self.vision.endpoint,
            "generator": self.generator.endpoint,
        }

    def start(self) -> None:
        """Serves the services on free loopback ports. Raises RuntimeError where they are served already."""
        if self._thread is not None:
            raise RuntimeError("these fake services are already served: create others")
        self._thread = ServerThread()
        self._thread.start((self.encoder, self.vision, self.generator))

    def stop(self) -> None:
        """Ends the services and all jobs."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def client(self, **options: Any) -> "Client":
        """Returns a client of the services. `options` are further arguments of `Client`."""
        from zrelay_client import Client

        return Client(**self.endpoints, **options)

    def async_client(self, **options: Any) -> "AsyncClient":
        """Returns an async client of the services. `options` are further arguments of `AsyncClient`."""
        from zrelay_client import AsyncClient

        return AsyncClient(**self.endpoints, **options)

    def __enter__(self) -> "FakeServices":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
