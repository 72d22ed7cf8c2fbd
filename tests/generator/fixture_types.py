"""Types of the fixtures that many of the generator's tests take."""

from collections.abc import Awaitable, Callable

from torch import Tensor

from zrelay.v1 import generator_pb2 as pb
from zrelay_generator.features.protocol import JobSpec, SamplingSettings
from zrelay_generator.model.loading import LoadedModel
from zrelay_generator.store.sqlite import SqliteJobStore
from zrelay_shared.wire import Parcel

from .generator_client import GeneratorClient
from .managed_jobs import ManagedJobs

Load = Callable[..., LoadedModel]
"""Loads a pipeline folder on the CPU."""
MakeSampling = Callable[..., SamplingSettings]
"""Makes the sampling of a small job, changed by keywords."""
MakeEmbeds = Callable[..., Tensor]
"""Makes random embeddings of so many tokens of a width."""
MakeSpec = Callable[..., JobSpec]
"""Makes the job of a small picture, its sampling changed by keywords."""
MakeManager = Callable[..., ManagedJobs]
"""Makes a job manager whose jobs go to a list."""
OpenStore = Callable[..., SqliteJobStore]
"""Opens the store of one folder again."""
RequestOf = Callable[..., Parcel[pb.GenerateRequest]]
"""Makes a request for the demo checkpoint."""
Parse = Callable[[Parcel[pb.GenerateRequest]], JobSpec]
"""Parses a request."""
Serve = Callable[..., Awaitable[GeneratorClient]]
"""Starts a generator and connects to it."""
