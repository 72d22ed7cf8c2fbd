"""What of the contract this generator does, by the contract's names; using the rest is refused with FEATURE_MISSING."""

from zrelay_shared.errors import FeatureMissing

AVAILABLE = {
    "generate.cfg": "",
    "generate.cfg_normalization": "",
    "generate.cfg_truncation": "",
    "generate.sigmas": "",
    "generate.preview": "",
    "generate.priority": "by order of priority, then of arrival",
    "generate.deterministic": "images of one request run one at a time",
    "jobs.get": "while the process lives",
    "jobs.list": "while the process lives",
    "jobs.cancel": "",
}
"""Name -> a note or restriction."""

MISSING = (
    "generate.img2img",
    "generate.inpaint",
    "generate.control",
    "generate.lora",
    "generate.skip_layer_guidance",
    "generate.dype",
    "generate.passes",
    "generate.omni",
    "generate.tiled_vae",
    "jobs.submit",
    "jobs.watch",
    "content.upload",
    "lora.manage",
)


def missing(feature: str, field: str = "") -> FeatureMissing:
    """The refusal of a feature that this generator does not have."""
    what = f"{field} needs {feature}, which" if field else feature
    return FeatureMissing(
        f"{what} is not built into this generator; GetInfo lists what is: leave it out, or use a newer one",
        field=field,
        metadata={"feature": feature},
    )
