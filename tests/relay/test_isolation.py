"""What callers see of each other, for every method of the three services.

Alice sends jobs and contents. Bob knows every id and digest of hers and sees nothing of them. An administrator does.
"""

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.helpers.identities import ADMINISTRATOR, dial_as, serving_identities
from tests.helpers.images import encoded, picture
from zrelay.v1 import encoder_pb2, generator_pb2, vision_pb2
from zrelay.v1.content_pb2 import ContentRef, ImageInput
from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.generation_pb2 import GenerationSpec, SamplingOptions
from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT
from zrelay_encoder.api.servicer import EncoderServicer
from zrelay_encoder.config import EncoderConfig
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_vision.api.servicer import VisionServicer
from zrelay_vision.config import VisionConfig

pytestmark = pytest.mark.asyncio(loop_scope="module")
DOCS = Path(__file__).parents[2] / "docs/reference/security.md"
SERVICES = (
    encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"],
    vision_pb2.DESCRIPTOR.services_by_name["VisionService"],
    generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"],
)
METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method for service in SERVICES for method in service.methods
}
PROMPT = "a secret of alice"
ALICE, BOB = "alice", "bob"


@dataclass(frozen=True)
class Outcome:
    """What a caller receives: messages, or a status with its details and metadata."""

    messages: tuple[bytes, ...] = ()
    code: str = "OK"
    details: str = ""
    trailers: tuple[tuple[str, bytes], ...] = ()

    @property
    def message(self) -> bytes:
        """The only message."""
        assert self.code == "OK", self
        (message,) = self.messages
        return message

    def replaced(self, old: str, new: str) -> "Outcome":
        """Returns the outcome with one text in place of another."""
        before, after = old.encode(), new.encode()
        return Outcome(
            tuple(message.replace(before, after) for message in self.messages),
            self.code,
            self.details.replace(old, new),
            tuple((key, value.replace(before, after)) for key, value in self.trailers),
        )

    def contains(self, text: str) -> bool:
        """Whether a text is anywhere in it."""
        return self != self.replaced(text, "")


class Person:
    """A caller with a channel to each service."""

    def __init__(self, name: str, endpoints: dict[str, str]) -> None:
        self.name = name
        self.channels = {service: dial_as(name, endpoint) for service, endpoint in endpoints.items()}

    async def close(self) -> None:
        """Closes its channels."""
        for channel in self.channels.values():
            await channel.close()

    async def call(self, path: str, *requests: Message) -> Outcome:
        """Calls a method, for example `GeneratorService/GetJob`."""
        method = METHODS[path]
        channel = self.channels[method.containing_service.name]
        full = f"/{method.containing_service.full_name}/{method.name}"
        kind: Any = GetMessageClass(method.input_type)
        assert all(isinstance(request, kind) for request in requests)
        raw = [request.SerializeToString() for request in requests]
        send: Any
        try:
            if method.client_streaming:
                send = channel.stream_unary(full)
                return Outcome((await send(iter(raw), timeout=60),))
            if method.server_streaming:
                send = channel.unary_stream(full)
                return Outcome(tuple([message async for message in send(raw[0], timeout=60)]))
            send = channel.unary_unary(full)
            return Outcome((await send(raw[0], timeout=60),))
        except grpc.aio.AioRpcError as error:
            trailers = tuple(
                (str(key), value if isinstance(value, bytes) else str(value).encode())
                for key, value in error.trailing_metadata()
            )
            return Outcome((), error.code().name, str(error.details()), trailers)


@dataclass
class Stage:
    """The services, the callers, and what Alice has sent.

    Attributes:
        endpoints: The address of each service.
        generator: The service.
        alice, bob, boss: The callers; the last one administers.
        secrets: Every text of Alice's that must not reach others.
    """

    endpoints: dict[str, str]
    generator: GeneratorServicer
    alice: Person
    bob: Person
    boss: Person
    job_id: str = ""
    request_id: str = "alice-request"
    embeds: bytes = b""
    image: bytes = b""
    result_sha256: str = ""
    page_token: str = ""
    secrets: list[str] = field(default_factory=list)

    @property
    def embeds_sha256(self) -> str:
        return digest(self.embeds)

    @property
    def image_sha256(self) -> str:
        return digest(self.image)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def unknown() -> str:
    """Returns a digest of nothing."""
    return secrets.token_hex(32)


def spec_of(embeds: bytes, **sampling: Any) -> GenerationSpec:
    """Returns a spec with its embeddings by value."""
    spec = GenerationSpec(
        sampling=SamplingOptions(**{"width": 64, "height": 64, "num_inference_steps": 1, "seed": 1, **sampling})
    )
    spec.prompt.prompt_embeds.CopyFrom(PromptEmbeds.FromString(embeds))
    spec.provenance.prompt = PROMPT
    return spec


def named_spec(sha256: str) -> GenerationSpec:
    """Returns a spec with its embeddings by their digest."""
    spec = spec_of(b"")
    spec.prompt.content.sha256 = sha256
    return spec


def embed(prompt: str = PROMPT) -> encoder_pb2.EncodePromptsRequest:
    return encoder_pb2.EncodePromptsRequest(prompts=[encoder_pb2.Prompt(text=prompt)])


def states_of(image: ImageInput) -> vision_pb2.EncodeImagesRequest:
    return vision_pb2.EncodeImagesRequest(images=[image], engine=vision_pb2.VISION_ENGINE_QWEN3_VL)


def grids_of(image: ImageInput) -> vision_pb2.EncodeImagesRequest:
    return vision_pb2.EncodeImagesRequest(images=[image], engine=vision_pb2.VISION_ENGINE_SIGLIP)


def conditioned(stage: Stage, image: ImageInput) -> vision_pb2.ConditionPromptRequest:
    return vision_pb2.ConditionPromptRequest(prompt_embeds=PromptEmbeds.FromString(stage.embeds), image=image)


def scored(image: ImageInput) -> vision_pb2.ScoreImagesRequest:
    return vision_pb2.ScoreImagesRequest(images=[image], texts=["a cat"])


def by_digest(sha256: str) -> ImageInput:
    return ImageInput(content=ContentRef(sha256=sha256))


def upload_of(data: bytes, parts: int = 4) -> list[generator_pb2.UploadBlobRequest]:
    """Returns the requests of an upload."""
    size = -(-len(data) // parts)
    chunks = [generator_pb2.UploadBlobRequest(data=data[at : at + size]) for at in range(0, len(data), size)]
    chunks[0].content.CopyFrom(ContentRef(sha256=digest(data), size_bytes=len(data)))
    return chunks


async def parsed(kind: Any, outcome: Awaitable[Outcome]) -> Any:
    """Returns the message of a call that succeeds."""
    return kind.FromString((await outcome).message)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Alice has generated an image, submitted a job, uploaded contents, and sent images to the vision service."""
    folder = tmp_path_factory.mktemp("isolation")
    plain: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
    generator = GeneratorServicer(GeneratorConfig(model=CHECKPOINT, state=folder, **plain))
    services = {
        "EncoderService": EncoderServicer(EncoderConfig(model=CHECKPOINT, cache=None, **plain)),
        "VisionService": VisionServicer(
            VisionConfig(
                qwen3_vl=VISION_CHECKPOINT / "qwen3_vl",
                siglip=VISION_CHECKPOINT / "siglip",
                reference_stats=None,
                cache=None,
                **plain,
            )
        ),
        "GeneratorService": generator,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZRELAY_STATE", str(folder))
        async with AsyncExitStack() as stack:
            endpoints = {
                name: await stack.enter_async_context(serving_identities(service)) for name, service in services.items()
            }
            alice, bob, boss = [Person(name, endpoints) for name in (ALICE, BOB, ADMINISTRATOR)]
            made = Stage(endpoints, generator, alice, bob, boss)
            await prepare(made)
            yield made
            for person in (alice, bob, boss):
                await person.close()


async def prepare(stage: Stage) -> None:
    """Lets Alice use every service."""
    alice = stage.alice
    reply = await parsed(encoder_pb2.EncodePromptsResponse, alice.call("EncoderService/EncodePrompts", embed()))
    stage.embeds = reply.results[0].prompt_embeds.SerializeToString()
    stage.image = encoded(picture(64, 48))
    submit = generator_pb2.SubmitJobRequest(request_id=stage.request_id, spec=spec_of(stage.embeds), detached=True)
    job = (await parsed(generator_pb2.SubmitJobResponse, alice.call("GeneratorService/SubmitJob", submit))).job
    stage.job_id = job.job_id
    events = (await alice.call("GeneratorService/WatchJob", generator_pb2.WatchJobRequest(job_id=job.job_id))).messages
    images = [generator_pb2.WatchJobResponse.FromString(event).event.image for event in events]
    (stage.result_sha256,) = [image.file_sha256 for image in images if image.data]
    another = generator_pb2.GenerateRequest(spec=named_spec(stage.embeds_sha256))
    assert (await alice.call("GeneratorService/Generate", another)).code == "OK", "she names what she sent"
    await alice.call("GeneratorService/UploadBlob", *upload_of(stage.image))
    file = ImageInput(data=stage.image)
    for path, request in vision_calls(stage, file):
        assert (await alice.call(path, request)).code == "OK"
    for path, request in vision_calls(stage, by_digest(stage.image_sha256)):
        assert (await alice.call(path, request)).code == "OK", "she names what she sent"
    listed = generator_pb2.ListJobsRequest(page_size=1)
    page = await parsed(generator_pb2.ListJobsResponse, alice.call("GeneratorService/ListJobs", listed))
    stage.page_token = page.next_page_token
    assert stage.page_token and page.jobs[0].job_id != job.job_id
    stage.secrets = [
        stage.job_id,
        stage.request_id,
        stage.embeds_sha256,
        stage.image_sha256,
        stage.result_sha256,
        PROMPT,
        f"member {ALICE}",
    ]


def vision_calls(stage: Stage, image: ImageInput) -> Iterable[tuple[str, Message]]:
    """Yields calls of every method that takes an image."""
    yield "VisionService/EncodeImages", states_of(image)
    yield "VisionService/EncodeImages", grids_of(image)
    yield "VisionService/ConditionPrompt", conditioned(stage, image)
    yield "VisionService/ScoreImages", scored(image)


# The table: what Bob sees of Alice, by method.

Check = Callable[[Stage], Awaitable[None]]


async def same(stage: Stage, path: str, ask: Callable[[str], Message], known: str, absent: str) -> None:
    """What Bob receives for something of Alice's is what he receives for what does not exist."""
    for_hers, for_none = await stage.bob.call(path, ask(known)), await stage.bob.call(path, ask(absent))
    assert for_hers.code == "NOT_FOUND"
    assert for_hers.replaced(known, "X") == for_none.replaced(absent, "X")


async def unknown_content(stage: Stage, path: str, ask: Callable[[str], Message]) -> None:
    for known in (stage.embeds_sha256, stage.image_sha256, stage.result_sha256):
        await same(stage, path, ask, known, unknown())


async def nothing_of_hers(stage: Stage, path: str, request: Message) -> None:
    """The reply holds nothing of Alice's."""
    outcome = await stage.bob.call(path, request)
    assert outcome.code == "OK" and not [text for text in stage.secrets if outcome.contains(text)]


async def get_job(stage: Stage) -> None:
    path = "GeneratorService/GetJob"
    await same(stage, path, lambda name: generator_pb2.GetJobRequest(job_id=name), stage.job_id, secrets.token_hex(8))


async def watch_job(stage: Stage) -> None:
    path = "GeneratorService/WatchJob"
    await same(stage, path, lambda name: generator_pb2.WatchJobRequest(job_id=name), stage.job_id, secrets.token_hex(8))


async def cancel_job(stage: Stage) -> None:
    path = "GeneratorService/CancelJob"
    await same(stage, path, lambda name: generator_pb2.CancelJobRequest(job_id=name), stage.job_id, "0" * 16)
    await same(
        stage, path, lambda name: generator_pb2.CancelJobRequest(request_id=name), stage.request_id, "other-request"
    )


async def list_jobs(stage: Stage) -> None:
    path = "GeneratorService/ListJobs"
    await nothing_of_hers(stage, path, generator_pb2.ListJobsRequest())
    ask = [generator_pb2.ListJobsRequest(page_token=token) for token in (stage.page_token, "0" * 32)]
    hers, forged = [await stage.bob.call(path, request) for request in ask]
    assert hers.code == "INVALID_ARGUMENT" and hers.replaced(stage.page_token, "X") == forged.replaced("0" * 32, "X")


async def submit_job(stage: Stage) -> None:
    path = "GeneratorService/SubmitJob"

    def ask(sha256: str) -> Message:
        return generator_pb2.SubmitJobRequest(request_id="by-name", spec=named_spec(sha256))

    await unknown_content(stage, path, ask)
    request = generator_pb2.SubmitJobRequest(
        request_id=stage.request_id, spec=spec_of(stage.embeds, num_images=2), detached=True
    )
    reply = await parsed(generator_pb2.SubmitJobResponse, stage.bob.call(path, request))
    assert reply.job.job_id != stage.job_id, "the same request id, another job, no conflict"
    kept = await parsed(
        generator_pb2.GetJobResponse,
        stage.alice.call("GeneratorService/GetJob", generator_pb2.GetJobRequest(job_id=stage.job_id)),
    )
    assert kept.job.request_id == stage.request_id


async def generate(stage: Stage) -> None:
    def ask(sha256: str) -> Message:
        return generator_pb2.GenerateRequest(spec=named_spec(sha256))

    await unknown_content(stage, "GeneratorService/Generate", ask)


async def upload_blob(stage: Stage) -> None:
    path, request = "GeneratorService/UploadBlob", upload_of(stage.image)
    broken = await stage.bob.call(path, *request[:-1])
    assert broken.code == "INVALID_ARGUMENT", "its end is awaited: the content does not count as stored"
    reply = await parsed(generator_pb2.UploadBlobResponse, stage.bob.call(path, *request))
    assert (reply.content.sha256, reply.content.size_bytes) == (stage.image_sha256, len(stage.image))
    assert not reply.existed
    assert (await parsed(generator_pb2.UploadBlobResponse, stage.bob.call(path, request[0]))).existed, "now it is his"


async def no_loras(stage: Stage) -> None:
    for name in ("ListLoras", "UploadLora", "RemoveLora"):
        request: Message = GetMessageClass(METHODS[f"GeneratorService/{name}"].input_type)()
        assert (await stage.bob.call(f"GeneratorService/{name}", request)).code == "UNIMPLEMENTED"


async def encode_images(stage: Stage) -> None:
    await unknown_content(stage, "VisionService/EncodeImages", lambda name: states_of(by_digest(name)))
    await unknown_content(stage, "VisionService/EncodeImages", lambda name: grids_of(by_digest(name)))


async def condition_prompt(stage: Stage) -> None:
    await unknown_content(stage, "VisionService/ConditionPrompt", lambda name: conditioned(stage, by_digest(name)))


async def score_images(stage: Stage) -> None:
    await unknown_content(stage, "VisionService/ScoreImages", lambda name: scored(by_digest(name)))


async def encode_prompts(stage: Stage) -> None:
    reply = await parsed(encoder_pb2.EncodePromptsResponse, stage.bob.call("EncoderService/EncodePrompts", embed()))
    assert not reply.results[0].cached


async def format_prompt(stage: Stage) -> None:
    request = encoder_pb2.FormatPromptRequest(prompts=[encoder_pb2.Prompt(text="of bob")])
    await nothing_of_hers(stage, "EncoderService/FormatPrompt", request)


def info_of(service: str) -> Check:
    async def get_info(stage: Stage) -> None:
        path = f"{service}/GetInfo"
        await nothing_of_hers(stage, path, GetMessageClass(METHODS[path].input_type)())

    return get_info


TABLE: dict[str, Check] = {
    "EncoderService/GetInfo": info_of("EncoderService"),
    "EncoderService/FormatPrompt": format_prompt,
    "EncoderService/EncodePrompts": encode_prompts,
    "VisionService/GetInfo": info_of("VisionService"),
    "VisionService/EncodeImages": encode_images,
    "VisionService/ConditionPrompt": condition_prompt,
    "VisionService/ScoreImages": score_images,
    "GeneratorService/GetInfo": info_of("GeneratorService"),
    "GeneratorService/Generate": generate,
    "GeneratorService/SubmitJob": submit_job,
    "GeneratorService/WatchJob": watch_job,
    "GeneratorService/GetJob": get_job,
    "GeneratorService/ListJobs": list_jobs,
    "GeneratorService/CancelJob": cancel_job,
    "GeneratorService/UploadBlob": upload_blob,
    "GeneratorService/ListLoras": no_loras,
    "GeneratorService/UploadLora": no_loras,
    "GeneratorService/RemoveLora": no_loras,
}
"""Method -> what another caller sees of a caller's work through it."""


@pytest.mark.parametrize("path", TABLE)
async def test_another_caller_sees_nothing(stage: Stage, path: str) -> None:
    newcomer = Person(f"bob-{path.replace('/', '-')}", stage.endpoints)
    await TABLE[path](replace(stage, bob=newcomer))
    await newcomer.close()


async def test_no_method_is_missing_from_the_table_and_from_the_documentation() -> None:
    assert set(TABLE) == set(METHODS)
    section = DOCS.read_text(encoding="utf-8").partition("## What callers see of each other")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+/\w+)`", row)}
    assert named == set(METHODS)


async def test_an_administrator_sees_and_changes_jobs_of_others(stage: Stage) -> None:
    boss, job_id = stage.boss, stage.job_id
    listed = await parsed(
        generator_pb2.ListJobsResponse, boss.call("GeneratorService/ListJobs", generator_pb2.ListJobsRequest())
    )
    assert job_id in [job.job_id for job in listed.jobs]
    watched = await boss.call("GeneratorService/WatchJob", generator_pb2.WatchJobRequest(job_id=job_id))
    assert watched.code == "OK" and watched.contains(stage.result_sha256)
    slow = generator_pb2.SubmitJobRequest(request_id="slow", spec=spec_of(stage.embeds), detached=True)
    slow.spec.sampling.num_inference_steps = 100
    mine = await parsed(generator_pb2.SubmitJobResponse, stage.alice.call("GeneratorService/SubmitJob", slow))
    cancel = generator_pb2.CancelJobRequest(request_id="slow")
    assert (await stage.bob.call("GeneratorService/CancelJob", cancel)).code == "NOT_FOUND"
    reply = await parsed(generator_pb2.CancelJobResponse, boss.call("GeneratorService/CancelJob", cancel))
    assert reply.job.job_id == mine.job.job_id and reply.job.ended_at


async def test_jobs_of_an_administrator_are_its_own(stage: Stage) -> None:
    submit = generator_pb2.SubmitJobRequest(request_id="of-boss", spec=spec_of(stage.embeds), detached=True)
    job = (await parsed(generator_pb2.SubmitJobResponse, stage.boss.call("GeneratorService/SubmitJob", submit))).job
    for person in (stage.alice, stage.bob):
        get = generator_pb2.GetJobRequest(job_id=job.job_id)
        assert (await person.call("GeneratorService/GetJob", get)).code == "NOT_FOUND"


async def test_jobs_are_counted_by_identity(stage: Stage) -> None:
    assert stage.generator.runtime is not None
    record = await stage.generator.runtime.store.by_id(stage.job_id, None)
    assert record is not None and record.caller == record.owner == f"member {ALICE}"


async def test_two_callers_use_one_request_id_at_the_same_time(stage: Stage) -> None:
    requests = [
        generator_pb2.SubmitJobRequest(request_id="at-once", spec=spec_of(stage.embeds, num_images=n), detached=True)
        for n in (1, 1, 2, 2)
    ]
    callers = (stage.alice, stage.alice, stage.bob, stage.bob)
    outcomes = await asyncio.gather(
        *(person.call("GeneratorService/SubmitJob", request) for person, request in zip(callers, requests, strict=True))
    )
    ids = [generator_pb2.SubmitJobResponse.FromString(outcome.message).job.job_id for outcome in outcomes]
    assert ids[0] == ids[1] != ids[2] == ids[3]
