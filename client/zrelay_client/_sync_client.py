"""The client for code without an event loop: the async one, run on a loop in a thread of its own."""

from collections.abc import Sequence
from types import TracebackType

from zrelay_client._async_client import AsyncClient
from zrelay_client._async_jobs import AsyncJobs
from zrelay_client._budget import DEFAULT_S
from zrelay_client._sync_facade import BackgroundLoop, Facade, iterates, waits


class Jobs(Facade[AsyncJobs]):
    """The jobs of a client's generators, as `client.jobs`: AsyncJobs' methods, each waiting for its result."""

    list = iterates(AsyncJobs.list)
    get = waits(AsyncJobs.get)
    cancel = waits(AsyncJobs.cancel)
    watch = iterates(AsyncJobs.watch)
    fetch = waits(AsyncJobs.fetch)


class Client(Facade[AsyncClient]):
    """AsyncClient's methods, each waiting for its result. Safe to share between threads.

        with Client() as client:  # configured services, or those of `zrelay up`
            result = client.generate("a red fox", seed=7)
            result.images[0].save("fox.png")

    Callbacks (`on_event`) run in the client's own thread.
    """

    def __init__(
        self,
        *,
        encoder: str | Sequence[str] | None = None,
        generator: str | Sequence[str] | None = None,
        vision: str | None = None,
        profile: str | None = None,
        timeout_s: float = DEFAULT_S,
    ) -> None:
        client = AsyncClient(encoder=encoder, generator=generator, vision=vision, profile=profile, timeout_s=timeout_s)
        super().__init__(client, BackgroundLoop())
        self.jobs = Jobs(client.jobs, self._loop)

    info = waits(AsyncClient.info)
    status = waits(AsyncClient.status)
    encoder_info = waits(AsyncClient.encoder_info)
    generator_info = waits(AsyncClient.generator_info)
    vision_info = waits(AsyncClient.vision_info)
    serving = waits(AsyncClient.serving)
    encode = waits(AsyncClient.encode)
    encode_batch = waits(AsyncClient.encode_batch)
    encode_images = waits(AsyncClient.encode_images)
    score_images = waits(AsyncClient.score_images)
    condition_prompt = waits(AsyncClient.condition_prompt)
    generate = waits(AsyncClient.generate)
    stream = iterates(AsyncClient.stream)
    generate_many = iterates(AsyncClient.generate_many)
    prepare = waits(AsyncClient.prepare)
    submit = waits(AsyncClient.submit)
    cancel = waits(AsyncClient.cancel)
    detach = waits(AsyncClient.detach)

    def painting(self) -> tuple[str, ...]:
        """The request_ids of the jobs that this client is painting now."""
        return self._target.painting()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what still runs, ends the connections and the thread."""
        self._loop.close(self._target.aclose)
