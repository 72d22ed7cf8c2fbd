"""Whether several endpoints of one role can stand in for one another, as `zrelay doctor` says it."""

from collections.abc import Sequence

from zrelay_client._checks import FAIL, OK, WARN, Check
from zrelay_client._generators import require_alike
from zrelay_client._info import EncoderInfo, GeneratorInfo
from zrelay_shared import exits, fingerprint
from zrelay_shared.errors import FailedPrecondition, ZrelayError


def check_alike(encoders: Sequence[EncoderInfo], generators: Sequence[GeneratorInfo]) -> list[Check]:
    """A line for each role of several endpoints that answered; none for one alone."""
    checks = []
    if len(encoders) > 1:
        checks += [_encoders(encoders[0], other) for other in encoders[1:]]
    if len(generators) > 1:
        checks.append(_generators(generators))
    return checks


def _encoders(first: EncoderInfo, other: EncoderInfo) -> Check:
    name = f"encoder {other.endpoint} stands in"
    if first.fingerprint is None or other.fingerprint is None:
        return Check(name, WARN, "not known while a model loads", "run `zrelay doctor` again when both are ready")
    if first.fingerprint.digest == other.fingerprint.digest:
        return Check(name, OK, f"the same embeddings as {first.endpoint}")
    try:
        found = fingerprint.compare(first.fingerprint, other.fingerprint)
    except ZrelayError:
        found = fingerprint.EncoderComparison(fingerprint.REFUSED)
    if found.relation == fingerprint.EQUIVALENT:
        return Check(name, OK, f"equal to rounding ({'; '.join(found.differences)}): only where the first is away")
    fix = "serve the same folder from both, or name the first alone"
    return Check(name, WARN, "; ".join(["never: it makes other embeddings", *found.differences]), fix)


def _generators(generators: Sequence[GeneratorInfo]) -> Check:
    name = "generators alike"
    try:
        require_alike(generators)
    except FailedPrecondition as error:
        return Check(name, FAIL, error.message, exit_code=exits.code_of(error))
    computing = {f"{info.device.kind} {info.device.compute_dtype}" for info in generators if info.device is not None}
    if len(computing) > 1:
        said = f"the same model, computed as {', '.join(sorted(computing))}: pictures are equal to rounding"
        return Check(name, WARN, said, "start all with the same --dtype for pictures that are alike to the last level")
    return Check(name, OK, f"{len(generators)} that paint the same pictures")
