"""Options of the client's calls: validated and normalised once, when they are made."""

import asyncio
import dataclasses
import re
from collections import Counter
from collections.abc import Awaitable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from tests.helpers.command_line import run_zrelay
from tests.helpers.refusals import refused
from zrelay.v1.encoder_pb2 import EncodeOptions as EncodeMessage
from zrelay.v1.encoder_pb2 import Prompt
from zrelay.v1.generation_pb2 import GenerationSpec, OutputOptions
from zrelay.v1.vision_pb2 import ConditionOptions as ConditionMessage
from zrelay.v1.vision_pb2 import EncodeImagesRequest
from zrelay.v1.vision_pb2 import StatesOptions as StatesMessage
from zrelay_client import (
    AsyncClient,
    ConditionKeywords,
    ConditionOptions,
    EncodeImagesKeywords,
    EncodeImagesOptions,
    EncodeKeywords,
    EncodeOptions,
    GenerateKeywords,
    GenerateOptions,
    ImageEmbeds,
    InvalidArgument,
    options,
)
from zrelay_client.client import _seeds_of
from zrelay_client.events import ImageFormat
from zrelay_client.options import CallOptions, options_of
from zrelay_client.testing import FakeServices
from zrelay_shared.enums import words

KINDS: list[tuple[type[CallOptions], Any]] = [
    (EncodeOptions, EncodeKeywords),
    (EncodeImagesOptions, EncodeImagesKeywords),
    (ConditionOptions, ConditionKeywords),
    (GenerateOptions, GenerateKeywords),
]


@pytest.mark.parametrize(("kind", "keywords"), KINDS)
def test_keywords_are_the_fields_of_the_options(kind: type[CallOptions], keywords: Any) -> None:
    """Type checkers see the TypedDict; the dataclass has the rules."""
    names = {"ImageEmbeds": ImageEmbeds}
    of_keywords = get_type_hints(keywords, None, names)
    of_options = get_type_hints(kind, None, names)
    assert of_keywords == of_options
    assert set(of_keywords) == {field.name for field in dataclasses.fields(kind)}
    assert all(field.default is None for field in dataclasses.fields(kind))


@pytest.mark.parametrize(
    ("literal", "message", "field"),
    [
        (options.ThinkMode, Prompt(), "think_mode"),
        (options.QuoteStripping, Prompt(), "quote_stripping"),
        (options.LongPromptMode, EncodeMessage(), "long_prompt_mode"),
        (options.WireDtype, EncodeMessage(), "dtype"),
        (options.Priority, GenerationSpec(), "priority"),
        (ImageFormat, OutputOptions(), "format"),
        (options.Engine, EncodeImagesRequest(), "engine"),
        (options.Tokens, StatesMessage(), "tokens"),
        (options.Blend, ConditionMessage(), "blend"),
        (options.Normalization, ConditionMessage(), "normalization"),
        (options.OutlierMask, ConditionMessage(), "outlier_mask"),
        (options.Curve, ConditionMessage(), "curve"),
    ],
)
def test_words_are_those_of_the_contract(literal: Any, message: Any, field: str) -> None:
    valid = set(words(message, field)) - {"i64", "u8"}  # integers are no data types of embeddings
    assert set(get_args(literal)) == valid


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        (GenerateOptions, {"width": -1}, "WIDTH_INVALID"),
        (GenerateOptions, {"sigmas": 1.0}, "SIGMAS_INVALID"),
        (GenerateOptions, {"skip_guidance_layers": [7, "8"]}, "SKIP_GUIDANCE_LAYERS_INVALID"),
        (GenerateOptions, {"strength": 0.5}, "STRENGTH_INVALID"),
        (GenerateOptions, {"strength": 2, "image": b"image"}, "STRENGTH_INVALID"),
        (GenerateOptions, {"strength": 0, "image": b"image"}, "STRENGTH_INVALID"),
        (GenerateOptions, {"guidance_scale": float("nan")}, "GUIDANCE_SCALE_INVALID"),
        (GenerateOptions, {"sigmas": [1.0, float("inf")]}, "SIGMAS_INVALID"),
        (GenerateOptions, {"num_images": 0}, "NUM_IMAGES_INVALID"),
        (GenerateOptions, {"quality": 0}, "QUALITY_INVALID"),
        (GenerateOptions, {"quality": 101}, "QUALITY_INVALID"),
        (GenerateOptions, {"quality": 80}, "QUALITY_INVALID"),
        (GenerateOptions, {"quality": 80, "format": "png"}, "QUALITY_INVALID"),
        (GenerateOptions, {"image": "fox.png"}, "IMAGE_INVALID"),
        (GenerateOptions, {"reference": 3}, "REFERENCE_INVALID"),
        (GenerateOptions, {"omni": [3]}, "OMNI_INVALID"),
        (GenerateOptions, {"omni": [b""] * 9}, "REFERENCE_COUNT"),
        (GenerateOptions, {"reference": "a.png", "omni": ["a.png"]}, "REFERENCE_AND_OMNI"),
        (GenerateOptions, {"conditioning": {"alpha": 0.5}}, "REFERENCE_MISSING"),
        (GenerateOptions, {"reference": "a.png", "conditioning": {"alpha": 2}}, "ALPHA_INVALID"),
        (GenerateOptions, {"labels": ["a"]}, "LABELS_INVALID"),
        (GenerateOptions, {"labels": {"a": "\udcff"}}, "TEXT_INVALID"),
        (GenerateOptions, {"deterministic": "yes"}, "DETERMINISTIC_INVALID"),
        (GenerateOptions, {"priority": "urgent"}, "PRIORITY_INVALID"),
        (EncodeOptions, {"system_prompt": 3}, "SYSTEM_PROMPT_INVALID"),
        (EncodeOptions, {"hidden_layer": 1 << 31}, "HIDDEN_LAYER_INVALID"),
        (EncodeOptions, {"dtype": "f64"}, "DTYPE_INVALID"),
        (ConditionOptions, {"alpha": float("nan")}, "ALPHA_INVALID"),
        (ConditionOptions, {"token_weights": "0.5"}, "TOKEN_WEIGHTS_INVALID"),
        (EncodeImagesOptions, {"target_area": 1.5}, "TARGET_AREA_INVALID"),
    ],
)
def test_a_value_that_is_not_valid_is_refused_with_its_reason(kind: Any, values: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        kind(**values)
    assert refused.value.reason == reason
    assert refused.value.field in values or refused.value.field == "alpha"


def test_values_are_normalised() -> None:
    numpy = pytest.importorskip("numpy")
    made = GenerateOptions(
        width=numpy.int64(64), shift=numpy.float32(3), sigmas=numpy.array([1.0, 0.5]), deterministic=numpy.bool_(True)
    )
    assert (made.width, made.shift, made.sigmas, made.deterministic) == (64, 3.0, (1.0, 0.5), True)
    assert [type(value) for value in (made.width, made.shift, made.deterministic)] == [int, float, bool]
    labels = {"a": "b"}
    kept = GenerateOptions(labels=labels, conditioning={})
    labels["a"] = "c"
    assert kept.labels == {"a": "b"}
    assert kept.conditioning == ConditionOptions()


def test_keywords_replace_fields_of_the_options() -> None:
    made = GenerateOptions(width=64, seed=7)
    assert options_of(GenerateOptions, made) is made
    assert options_of(GenerateOptions, made, {"seed": None}) == GenerateOptions(width=64)
    assert options_of(GenerateOptions, {"width": 64}, {"seed": 7}) == made
    assert options_of(GenerateOptions, None) == GenerateOptions()
    with pytest.raises(TypeError, match="expected GenerateOptions or a mapping of its fields, got EncodeOptions"):
        options_of(GenerateOptions, EncodeOptions())
    with pytest.raises(InvalidArgument, match="width"):
        options_of(GenerateOptions, made, {"width": -1})


@pytest.mark.parametrize("method", ["generate", "stream", "generate_many", "prepare", "submit", "encode"])
def test_methods_take_options_and_keywords(method: str) -> None:
    parameters: Sequence[str] = getattr(AsyncClient, method).__code__.co_varnames
    assert parameters[2] == "options"
    assert "keywords" in parameters


def test_labels_cannot_change_and_options_are_hashable() -> None:
    made = GenerateOptions(labels={"a": "1", "b": "2"}, sigmas=[1.0, 0.5])
    same = GenerateOptions(labels={"b": "2", "a": "1"}, sigmas=(1.0, 0.5))
    assert made == same and hash(made) == hash(same)
    assert made != GenerateOptions(labels={"a": "1"}, sigmas=[1.0, 0.5])
    assert made.labels is not None and dict(made.labels) == {"a": "1", "b": "2"}
    with pytest.raises(TypeError, match="does not support item assignment"):
        made.labels["a"] = "3"  # type: ignore[index]
    assert made.replaced(seed=1).labels == {"a": "1", "b": "2"}


@pytest.mark.parametrize("seconds", ["3", 0, -1, float("nan"), float("inf"), None, [1]])
def test_a_timeout_is_a_number_of_seconds(seconds: Any) -> None:
    message = rf"^timeout_s: expected a number of seconds above 0, got {re.escape(repr(seconds))}$"
    refused(lambda: AsyncClient(generator="127.0.0.1:1", timeout_s=seconds), reason="TIMEOUT_INVALID", match=message)
    if seconds is not None:  # the default of a call
        client = AsyncClient(generator="127.0.0.1:1")
        call = client.generate("a red fox", timeout_s=seconds)
        refused(lambda: asyncio.run(call), field="timeout_s", match=message)


def test_ids_are_texts() -> None:
    client = AsyncClient(encoder="127.0.0.1:1", generator="127.0.0.1:1")
    wrong: Any = 5
    calls = [
        client.generate("a red fox", request_id=wrong),
        client.submit("a red fox", request_id=wrong),
        client.cancel(wrong),
        client.detach(wrong),
        anext(client.stream("a red fox", request_id=wrong)),
    ]
    for call in calls:
        message = "^request_id: expected a text, got 5$"
        refused(partial(asyncio.run, awaited(call)), reason="REQUEST_ID_INVALID", field="request_id", match=message)
    batch = anext(client.generate_many("a red fox", batch_id=wrong))
    refused(partial(asyncio.run, awaited(batch)), reason="BATCH_ID_INVALID", field="batch_id")


async def awaited(call: Awaitable[object]) -> object:
    """Returns the result of a call."""
    return await call


def test_options_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerateOptions().width = 3  # type: ignore[misc]


def test_one_field_is_replaced_and_checked_alone() -> None:
    made = GenerateOptions(width=64, seed=7)
    assert made.replaced(seed=8) == GenerateOptions(width=64, seed=8)
    assert made.replaced(width=None) == GenerateOptions(seed=7)
    assert made == GenerateOptions(width=64, seed=7), "the original does not change"
    with pytest.raises(InvalidArgument, match="seed: expected a whole number"):
        made.replaced(seed="8")
    with pytest.raises(InvalidArgument, match="strength: expected none where there is no image"):
        made.replaced(strength=0.5)


class Constructions:
    """Counts the options that are constructed, which is when all of their values are checked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        construct = CallOptions.__post_init__

        def counted(made: CallOptions) -> None:
            self.counts[type(made).__name__] += 1
            construct(made)

        monkeypatch.setattr(CallOptions, "__post_init__", counted)


def test_a_batch_constructs_its_options_once(monkeypatch: pytest.MonkeyPatch) -> None:
    constructions = Constructions(monkeypatch)
    with FakeServices() as fake, fake.client() as client:
        outcomes = list(
            client.generate_many("a red fox", seeds=range(5), width=64, height=64, encoding={"think_mode": "empty"})
        )
    assert [outcome.error for outcome in outcomes] == [None] * 5
    assert constructions.counts == {"GenerateOptions": 1, "EncodeOptions": 1}


@pytest.mark.parametrize(
    "flags",
    [
        ("--seed", "1"),
        ("--seeds", "1-5"),
        ("--seed", "1", "--detach"),
        ("--seeds", "1-5", "--detach"),
    ],
)
def test_a_command_constructs_its_options_once(
    monkeypatch: pytest.MonkeyPatch, empty_home: Path, flags: tuple[str, ...]
) -> None:
    constructions = Constructions(monkeypatch)
    with FakeServices() as fake:
        services = [f"--encoder={fake.encoder.endpoint}", f"--generator={fake.generator.endpoint}"]
        ran = run_zrelay("generate", "a red fox", "--size=64x64", *flags, *services, cwd=empty_home)
    assert ran.returncode == 0, ran.stderr
    assert constructions.counts == {"GenerateOptions": 1, "EncodeOptions": 1}


def test_a_file_of_prompts_constructs_the_options_of_each_line_once(
    monkeypatch: pytest.MonkeyPatch, empty_home: Path
) -> None:
    (empty_home / "p.jsonl").write_text('{"prompt": "fox"}\n{"prompt": "dog", "output": "dog.png"}\n')
    constructions = Constructions(monkeypatch)
    with FakeServices() as fake:
        services = [f"--encoder={fake.encoder.endpoint}", f"--generator={fake.generator.endpoint}"]
        ran = run_zrelay("generate", "--prompts", "p.jsonl", *services, cwd=empty_home)
    assert ran.returncode == 0, ran.stderr
    assert constructions.counts == {"GenerateOptions": 2, "EncodeOptions": 2}


def test_the_command_that_fetches_names_every_detached_job(empty_home: Path) -> None:
    with FakeServices() as fake:
        services = [f"--encoder={fake.encoder.endpoint}", f"--generator={fake.generator.endpoint}"]
        ran = run_zrelay("generate", "a red fox", "--size=64x64", "--count=3", "--detach", *services, cwd=empty_home)
        assert ran.returncode == 0, ran.stderr
        ids = ran.stdout.split()
        assert len(ids) == 3
        flags = f"--generator {fake.generator.endpoint} -o images/"
        assert ran.stderr.splitlines()[-1] == f"  zrelay jobs fetch {' '.join(ids)} {flags}"
        fetched = run_zrelay(*ran.stderr.splitlines()[-1].split()[1:], cwd=empty_home)
    assert fetched.returncode == 0, fetched.stderr
    assert len(list((empty_home / "images").iterdir())) == 3


def test_a_range_of_seeds_is_checked_by_its_ends() -> None:
    seeds = range(1 << 40)
    assert _seeds_of(seeds, GenerateOptions()) is seeds
    with pytest.raises(InvalidArgument, match="seed: expected"):
        _seeds_of(range(1 << 63, (1 << 64) + 1), GenerateOptions())
    assert list(_seeds_of(range(0), GenerateOptions())) == []
