"""Helpers of the tests that parse requests."""

from pathlib import Path
from typing import Any, TypeVar, overload

from tests.helpers.refusals import refused
from zrelay_generator.features.acceptance import Acceptance, acceptance
from zrelay_generator.features.protocol import FeatureSpec, JobSpec
from zrelay_generator.model.identity import identify
from zrelay_generator.model.loading import LoadedModel
from zrelay_shared.errors import InvalidArgument, ZrelayError
from zrelay_shared.service.roles import GeneratorConfig

from .fixture_types import Parse

E = TypeVar("E", bound=ZrelayError)
S = TypeVar("S", bound=FeatureSpec)


def accepts_of(folder: Path, model: LoadedModel, cache: Path) -> Acceptance:
    """Returns what a generator of this checkpoint accepts."""
    identity = identify(folder, "demo", cache)
    return acceptance(GeneratorConfig(model=folder), model.limits, model.defaults, identity)


@overload
def refused_request(parse: Parse, parcel: Any) -> InvalidArgument: ...


@overload
def refused_request(parse: Parse, parcel: Any, kind: type[E]) -> E: ...


def refused_request(parse: Parse, parcel: Any, kind: type[ZrelayError] = InvalidArgument) -> ZrelayError:
    """Parses a request, which must be refused with `kind`, and returns the error."""
    return refused(lambda: parse(parcel), kind)


def part_of(spec: JobSpec, kind: type[S]) -> S:
    """Returns the job's part of a feature, which it must have."""
    part = spec.feature(kind)
    assert part is not None
    return part
