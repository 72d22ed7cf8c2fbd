"""Whether a vision service goes with the encoder and the generator, as `zrelay doctor` says it."""

from collections.abc import Sequence

from zrelay_client._checks import FAIL, OK, WARN, Check
from zrelay_client._info import EncoderInfo, GeneratorInfo, VisionInfo
from zrelay_shared import exits


def check_vision(said: VisionInfo, encoder: EncoderInfo | None, generator: GeneratorInfo | None) -> list[Check]:
    """A line for each engine, and one for what a generator wants and no engine makes."""
    if not said.ready:
        return [Check("vision engines", WARN, "not known while they load", "run `zrelay doctor` again")]
    if not said.engines:
        fix = "start it with --qwen3-vl FOLDER or --siglip FOLDER"
        return [Check("vision engines", WARN, "none: only saved states can be blended into prompts", fix)]
    checks = []
    for engine in said.engines:
        what = f"{engine.model_id}, width {engine.width}"
        if engine.name == "qwen3_vl" and encoder is not None:
            checks.append(_states(what, engine.width, engine.calibrations, encoder))
        else:
            checks.append(Check(f"vision {engine.name}", OK, what))
    names: Sequence[str] = [engine.name for engine in said.engines]
    if generator is not None and "siglip" not in names and _omni(generator):
        fix = "start it with --siglip FOLDER, the Omni checkpoint's own"
        checks.append(
            Check("vision fits generator", WARN, "the generator paints after images, no SigLIP2 is here", fix)
        )
    return checks


def _states(what: str, width: int, calibrations: Sequence[str], encoder: EncoderInfo) -> Check:
    name, fingerprint = "vision fits encoder", encoder.fingerprint
    if fingerprint is None:
        return Check(name, WARN, "not known while the encoder loads", "run `zrelay doctor` again")
    if width != fingerprint.width:
        fix = f"serve a Qwen3-VL whose language model is {fingerprint.width} wide (Qwen3-VL-4B for Qwen3-4B)"
        said = f"{what}: its states cannot be blended into prompts of width {fingerprint.width}"
        return Check(name, FAIL, said, fix, exits.REFUSED)
    statistics = "reference statistics of this encoder" if fingerprint.digest in calibrations else "no calibration"
    return Check(name, OK, f"{what}, {statistics}")


def _omni(generator: GeneratorInfo) -> bool:
    return any(feature.name == "generate.omni" and feature.available for feature in generator.features)
