"""What of the contract this generator does, by the contract's names; using the rest is refused with FEATURE_MISSING."""

from zrelay_shared.errors import FeatureMissing

AVAILABLE = {
    "generate.cfg": "",
    "generate.cfg_normalization": "",
    "generate.cfg_truncation": "",
    "generate.sigmas": "",
    "generate.preview": "",
    "generate.img2img": "",
    "generate.skip_layer_guidance": "",
    "generate.priority": "within a priority the least work left goes first; a level up for each minute of waiting",
    "generate.deterministic": "its images run one at a time",
    "jobs.submit": "",
    "jobs.watch": "",
    "jobs.get": "",
    "jobs.list": "",
    "jobs.cancel": "",
    "content.upload": "",
}
"""Name -> a note or restriction."""

MISSING = (
    "generate.inpaint",
    "generate.control",
    "generate.lora",
    "generate.dype",
    "generate.passes",
    "generate.tiled_vae",
    "lora.manage",
)

OMNI = "generate.omni"
"""There where the checkpoint's transformer has SigLIP parts."""


def missing(feature: str, field: str = "") -> FeatureMissing:
    """The refusal of a feature that this generator does not have."""
    what = f"{field} needs {feature}, which" if field else feature
    return FeatureMissing(
        f"{what} is not built into this generator; GetInfo lists what is: leave it out, or use a newer one",
        field=field,
        metadata={"feature": feature},
    )
