"""The generator as a service: its handlers, and its life from loading to the end."""

from functools import partial

from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import generation_pb2
from zrelay.v1 import generator_pb2 as pb
from zrelay_generator.api.contents import DEFAULT_UPLOAD_LIMITS, UploadLimits
from zrelay_generator.api.requests import parse_sampling
from zrelay_generator.api.servicer import GeneratorHandlers
from zrelay_generator.jobs.manager import DEFAULT_INTERVALS, Intervals
from zrelay_generator.model.identity import hash_encoder
from zrelay_generator.runtime import GeneratorRuntime, HashEncoder, LoadModel, MakeScheduler, ReportDevice, start
from zrelay_generator.scheduling.scheduler import Scheduler
from zrelay_generator.store.clock import SYSTEM_CLOCKS, SystemClocks
from zrelay_shared.errors import CheckpointError, InvalidArgument
from zrelay_shared.service.lifecycle import Service
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.torch_devices import report


class GeneratorServicer(GeneratorHandlers, Service):
    """The servicer with its lifecycle.

    Attributes:
        runtime: The running parts, None until the model is loaded.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        load: LoadModel | None = None,
        intervals: Intervals = DEFAULT_INTERVALS,
        *,
        make_scheduler: MakeScheduler = Scheduler,
        report_device: ReportDevice = report,
        hash_weights: HashEncoder = hash_encoder,
        clocks: SystemClocks = SYSTEM_CLOCKS,
        upload_limits: UploadLimits = DEFAULT_UPLOAD_LIMITS,
    ) -> None:
        """Creates a servicer whose model is not loaded yet.

        Args:
            config: The settings.
            load: Makes the model from a pipeline folder, None for `load_model`. Benchmarks pass another one to run
                without a device.
            intervals: Intervals of heartbeats, retries and leases.
            make_scheduler: Makes the scheduler.
            report_device: Describes the device, at the start and with every heartbeat.
            hash_weights: Computes the digest of the text encoder's weights after the start.
            clocks: The clocks of the system, for the order and the age of jobs.
            upload_limits: Limits of uploads.
        """
        super().__init__(config)
        self._start = partial(
            start,
            config,
            load,
            intervals,
            make_scheduler=make_scheduler,
            report_device=report_device,
            hash_weights=hash_weights,
            clocks=clocks,
            upload_limits=upload_limits,
        )
        self.runtime: GeneratorRuntime | None = None

    @property
    def descriptor(self) -> ServiceDescriptor:
        """zrelay.v1.GeneratorService."""
        return pb.DESCRIPTOR.services_by_name["GeneratorService"]

    @property
    def max_streams(self) -> None:
        """A client has one call open for each job in flight."""

    @property
    def unhealthy_reason(self) -> str:
        """Why the generator cannot serve now (device stuck or lost, disk not writable), "" if it can."""
        return "" if self.runtime is None else self.runtime.problem

    @property
    def restart_reason(self) -> str:
        """Why the process must be restarted (device lost), "" if it need not be."""
        return "" if self.runtime is None else self.runtime.device.broken

    async def load(self) -> None:
        """Loads the model and continues unfinished jobs.

        Raises:
            CheckpointError: The model folder cannot be used, or its defaults are not valid here.
            FailedPrecondition: The device is missing, or the state folder cannot be used.
        """
        runtime = await self._start()
        try:  # a request without any sampling options must be valid
            parse_sampling(generation_pb2.SamplingOptions(), runtime.accepts.sampling)
        except InvalidArgument as error:
            await runtime.close()
            raise CheckpointError(
                f"zrelay.json: its defaults are not valid here: {error.message}; change it, or start with wider limits "
                "(`zrelay serve generator --help`)",
                metadata={"file": "zrelay.json"},
            ) from error
        self.served = self.runtime = runtime

    async def drain(self, grace_s: float) -> None:
        """Accepts no new work, finishes what can be finished in `grace_s` seconds, and suspends the rest."""
        if self.runtime is not None:
            await self.runtime.jobs.drain(grace_s)

    async def close(self) -> None:
        """Ends the threads and releases the state folder."""
        if self.runtime is not None:
            await self.runtime.close()
