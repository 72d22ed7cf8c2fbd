"""What the tests of ConditionPrompt ask for."""

from typing import Any

from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.vision_pb2 import (
    BlendMode,
    ConditionPromptRequest,
    OutlierMask,
    StateNormalization,
)
from zrelay.v1.vision_pb2 import ConditionOptions as Options

from .conftest import (
    encoded,
    picture,
)

IMAGE = picture(50, 40)
FILE = ImageInput(data=encoded(IMAGE))
BLENDS = [mode for mode in BlendMode.values() if mode]
NORMALIZATIONS = [how for how in StateNormalization.values() if how]
MASKS = [mask for mask in OutlierMask.values() if mask]


def asked(image: ImageInput = FILE, **options: Any) -> ConditionPromptRequest:
    return ConditionPromptRequest(image=image, options=Options(**options))
