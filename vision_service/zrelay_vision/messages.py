"""Results into the contract's messages, tensors beside them."""

from zrelay.v1 import vision_pb2 as pb
from zrelay_shared import fingerprint as encoder_fingerprint
from zrelay_shared import vision_fingerprint
from zrelay_shared.torch_tensors import to_wire
from zrelay_shared.wire import Parcel
from zrelay_vision.condition_prompt import ConditionedPrompt
from zrelay_vision.encode_images import EncodedPicture
from zrelay_vision.measures import Statistics
from zrelay_vision.scores import Scores
from zrelay_vision.token_modes import States, TokenMode

_MOST_LISTED = 20
_TOKENS = {mode: getattr(pb.VisionTokens, f"VISION_TOKENS_{mode.name}") for mode in TokenMode}


def encode_reply(pictures: list[EncodedPicture]) -> Parcel[pb.EncodeImagesResponse]:
    """The reply of EncodeImages."""
    reply = Parcel(pb.EncodeImagesResponse())
    for picture in pictures:
        result = reply.message.results.add(image_sha256=picture.sha256)
        made = vision_fingerprint.to_message(picture.fingerprint)
        if isinstance(picture.result, States):
            result.states.fingerprint.CopyFrom(made)
            result.states.image_token_start, result.states.image_token_count = (
                picture.result.start,
                picture.result.count,
            )
            result.states.tokens = _TOKENS[picture.result.tokens]
            to_wire(reply, result.states.hidden_states, picture.result.hidden_states.contiguous())
        else:
            result.siglip_embeds.fingerprint.CopyFrom(made)
            to_wire(reply, result.siglip_embeds.grid, picture.result.contiguous())
    return reply


def score_reply(scores: list[Scores]) -> pb.ScoreImagesResponse:
    """The reply of ScoreImages."""
    return pb.ScoreImagesResponse(
        images=[
            pb.ImageScores(probabilities=one.probabilities[0].tolist(), cosines=one.cosines[0].tolist())
            for one in scores
        ]
    )


def condition_reply(
    request: Parcel[pb.ConditionPromptRequest], done: ConditionedPrompt
) -> Parcel[pb.ConditionPromptResponse]:
    """The reply of ConditionPrompt: the request's own PromptEmbeds, with the tensor that was made of it."""
    given = request.message.prompt_embeds
    reply = Parcel(pb.ConditionPromptResponse(image_sha256=done.sha256), request)
    embeds, conditioned = reply.message.prompt_embeds, done.conditioned
    embeds.CopyFrom(given)
    if done.changed:
        embeds.fingerprint.CopyFrom(encoder_fingerprint.to_message(done.fingerprint))
        to_wire(reply, embeds.segments[0].prompt_embeds, conditioned.prompt_embeds.contiguous())
        cut = conditioned.before.tokens - conditioned.after.tokens
        embeds.report.token_count = conditioned.after.tokens
        embeds.report.dropped_tokens += max(0, cut)
    outliers = conditioned.outliers
    reply.message.report.CopyFrom(
        pb.ConditionReport(
            before=_statistics(conditioned.before),
            states=_statistics(conditioned.states),
            after=_statistics(conditioned.after),
            outliers=[
                pb.OutlierDimension(dimension=dimension, ratio=ratio)
                for dimension, ratio in list(zip(outliers.dimensions, outliers.ratios, strict=True))[:_MOST_LISTED]
            ],
            outlier_count=len(outliers.dimensions),
            calibrated=done.calibrated,
        )
    )
    return reply


def _statistics(measured: Statistics) -> pb.EmbedsStatistics:
    return pb.EmbedsStatistics(
        token_rms=measured.token_rms, mean=measured.mean, std=measured.std, tokens=measured.tokens
    )
