from zrelay.v1 import content_pb2 as _content_pb2
from zrelay.v1 import embeds_pb2 as _embeds_pb2
from zrelay.v1 import vision_pb2 as _vision_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]

class DypeMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DYPE_METHOD_UNSPECIFIED: _ClassVar[DypeMethod]
    DYPE_METHOD_VISION_YARN: _ClassVar[DypeMethod]
    DYPE_METHOD_YARN: _ClassVar[DypeMethod]
    DYPE_METHOD_NTK: _ClassVar[DypeMethod]

class JobPriority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_PRIORITY_UNSPECIFIED: _ClassVar[JobPriority]
    JOB_PRIORITY_INTERACTIVE: _ClassVar[JobPriority]
    JOB_PRIORITY_NORMAL: _ClassVar[JobPriority]
    JOB_PRIORITY_BATCH: _ClassVar[JobPriority]
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
DYPE_METHOD_UNSPECIFIED: DypeMethod
DYPE_METHOD_VISION_YARN: DypeMethod
DYPE_METHOD_YARN: DypeMethod
DYPE_METHOD_NTK: DypeMethod
JOB_PRIORITY_UNSPECIFIED: JobPriority
JOB_PRIORITY_INTERACTIVE: JobPriority
JOB_PRIORITY_NORMAL: JobPriority
JOB_PRIORITY_BATCH: JobPriority

class EmbedsInput(_message.Message):
    __slots__ = ("prompt_embeds", "content")
    PROMPT_EMBEDS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    prompt_embeds: _embeds_pb2.PromptEmbeds
    content: _content_pb2.ContentRef
    def __init__(self, prompt_embeds: _Optional[_Union[_embeds_pb2.PromptEmbeds, _Mapping]] = ..., content: _Optional[_Union[_content_pb2.ContentRef, _Mapping]] = ...) -> None: ...

class SamplingOptions(_message.Message):
    __slots__ = ("width", "height", "num_inference_steps", "guidance_scale", "cfg_normalization", "cfg_truncation", "shift", "sigmas", "seed", "num_images")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    CFG_NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    CFG_TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    SIGMAS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    cfg_normalization: float
    cfg_truncation: float
    shift: float
    sigmas: _containers.RepeatedScalarFieldContainer[float]
    seed: int
    num_images: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., cfg_normalization: _Optional[float] = ..., cfg_truncation: _Optional[float] = ..., shift: _Optional[float] = ..., sigmas: _Optional[_Iterable[float]] = ..., seed: _Optional[int] = ..., num_images: _Optional[int] = ...) -> None: ...

class ImageToImage(_message.Message):
    __slots__ = ("image", "strength")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    image: _content_pb2.ImageInput
    strength: float
    def __init__(self, image: _Optional[_Union[_content_pb2.ImageInput, _Mapping]] = ..., strength: _Optional[float] = ...) -> None: ...

class Inpaint(_message.Message):
    __slots__ = ("image", "mask", "strength")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    image: _content_pb2.ImageInput
    mask: _content_pb2.ImageInput
    strength: float
    def __init__(self, image: _Optional[_Union[_content_pb2.ImageInput, _Mapping]] = ..., mask: _Optional[_Union[_content_pb2.ImageInput, _Mapping]] = ..., strength: _Optional[float] = ...) -> None: ...

class Control(_message.Message):
    __slots__ = ("model", "image", "scale", "start", "stop")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    model: str
    image: _content_pb2.ImageInput
    scale: float
    start: float
    stop: float
    def __init__(self, model: _Optional[str] = ..., image: _Optional[_Union[_content_pb2.ImageInput, _Mapping]] = ..., scale: _Optional[float] = ..., start: _Optional[float] = ..., stop: _Optional[float] = ...) -> None: ...

class LoraUse(_message.Message):
    __slots__ = ("name", "scale")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    name: str
    scale: float
    def __init__(self, name: _Optional[str] = ..., scale: _Optional[float] = ...) -> None: ...

class SkipLayerGuidance(_message.Message):
    __slots__ = ("scale", "layers", "start", "stop")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    scale: float
    layers: _containers.RepeatedScalarFieldContainer[int]
    start: float
    stop: float
    def __init__(self, scale: _Optional[float] = ..., layers: _Optional[_Iterable[int]] = ..., start: _Optional[float] = ..., stop: _Optional[float] = ...) -> None: ...

class Dype(_message.Message):
    __slots__ = ("method", "scale", "exponent", "start_sigma", "base_resolution")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    EXPONENT_FIELD_NUMBER: _ClassVar[int]
    START_SIGMA_FIELD_NUMBER: _ClassVar[int]
    BASE_RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    method: DypeMethod
    scale: float
    exponent: float
    start_sigma: float
    base_resolution: int
    def __init__(self, method: _Optional[_Union[DypeMethod, str]] = ..., scale: _Optional[float] = ..., exponent: _Optional[float] = ..., start_sigma: _Optional[float] = ..., base_resolution: _Optional[int] = ...) -> None: ...

class Pass(_message.Message):
    __slots__ = ("scale", "num_inference_steps", "strength", "shift", "guidance_scale")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    scale: float
    num_inference_steps: int
    strength: float
    shift: float
    guidance_scale: float
    def __init__(self, scale: _Optional[float] = ..., num_inference_steps: _Optional[int] = ..., strength: _Optional[float] = ..., shift: _Optional[float] = ..., guidance_scale: _Optional[float] = ...) -> None: ...

class OmniReferences(_message.Message):
    __slots__ = ("images", "siglip_embeds", "siglip_contents")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SIGLIP_EMBEDS_FIELD_NUMBER: _ClassVar[int]
    SIGLIP_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[_content_pb2.ImageInput]
    siglip_embeds: _containers.RepeatedCompositeFieldContainer[_vision_pb2.SiglipEmbeds]
    siglip_contents: _containers.RepeatedCompositeFieldContainer[_content_pb2.ContentRef]
    def __init__(self, images: _Optional[_Iterable[_Union[_content_pb2.ImageInput, _Mapping]]] = ..., siglip_embeds: _Optional[_Iterable[_Union[_vision_pb2.SiglipEmbeds, _Mapping]]] = ..., siglip_contents: _Optional[_Iterable[_Union[_content_pb2.ContentRef, _Mapping]]] = ...) -> None: ...

class TiledVae(_message.Message):
    __slots__ = ("tile_size", "tile_overlap")
    TILE_SIZE_FIELD_NUMBER: _ClassVar[int]
    TILE_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    tile_size: int
    tile_overlap: int
    def __init__(self, tile_size: _Optional[int] = ..., tile_overlap: _Optional[int] = ...) -> None: ...

class PreviewOptions(_message.Message):
    __slots__ = ("every_steps", "max_side")
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    every_steps: int
    max_side: int
    def __init__(self, every_steps: _Optional[int] = ..., max_side: _Optional[int] = ...) -> None: ...

class OutputOptions(_message.Message):
    __slots__ = ("format", "quality", "omit_provenance")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    OMIT_PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    quality: int
    omit_provenance: bool
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., quality: _Optional[int] = ..., omit_provenance: bool = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("prompt", "negative_prompt", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    negative_prompt: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GenerationSpec(_message.Message):
    __slots__ = ("prompt", "negative_prompt", "sampling", "image_to_image", "inpaint", "controls", "loras", "skip_layer_guidance", "dype", "passes", "omni", "tiled_vae", "preview", "output", "provenance", "priority", "deterministic")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    IMAGE_TO_IMAGE_FIELD_NUMBER: _ClassVar[int]
    INPAINT_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    SKIP_LAYER_GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    DYPE_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    OMNI_FIELD_NUMBER: _ClassVar[int]
    TILED_VAE_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    prompt: EmbedsInput
    negative_prompt: EmbedsInput
    sampling: SamplingOptions
    image_to_image: ImageToImage
    inpaint: Inpaint
    controls: _containers.RepeatedCompositeFieldContainer[Control]
    loras: _containers.RepeatedCompositeFieldContainer[LoraUse]
    skip_layer_guidance: SkipLayerGuidance
    dype: Dype
    passes: _containers.RepeatedCompositeFieldContainer[Pass]
    omni: OmniReferences
    tiled_vae: TiledVae
    preview: PreviewOptions
    output: OutputOptions
    provenance: Provenance
    priority: JobPriority
    deterministic: bool
    def __init__(self, prompt: _Optional[_Union[EmbedsInput, _Mapping]] = ..., negative_prompt: _Optional[_Union[EmbedsInput, _Mapping]] = ..., sampling: _Optional[_Union[SamplingOptions, _Mapping]] = ..., image_to_image: _Optional[_Union[ImageToImage, _Mapping]] = ..., inpaint: _Optional[_Union[Inpaint, _Mapping]] = ..., controls: _Optional[_Iterable[_Union[Control, _Mapping]]] = ..., loras: _Optional[_Iterable[_Union[LoraUse, _Mapping]]] = ..., skip_layer_guidance: _Optional[_Union[SkipLayerGuidance, _Mapping]] = ..., dype: _Optional[_Union[Dype, _Mapping]] = ..., passes: _Optional[_Iterable[_Union[Pass, _Mapping]]] = ..., omni: _Optional[_Union[OmniReferences, _Mapping]] = ..., tiled_vae: _Optional[_Union[TiledVae, _Mapping]] = ..., preview: _Optional[_Union[PreviewOptions, _Mapping]] = ..., output: _Optional[_Union[OutputOptions, _Mapping]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., priority: _Optional[_Union[JobPriority, str]] = ..., deterministic: bool = ...) -> None: ...
