"""Limits and words that clients and servers must agree on. Every help imports this module, so it imports nothing."""

MIB = 1 << 20

MAX_MESSAGE_BYTES = 64 * MIB
"""Size of one gRPC message, at both ends. A 4096 x 4096 PNG of noise (50 MiB) fits."""

MAX_MESSAGE_FIELDS = 16_384
"""Fields of one message, at all levels: more than twice the longest list of jobs (200 jobs of 30 fields). 64 MiB could
hold 32 million fields, and parsing those takes minutes and gigabytes."""

MAX_PENDING_CALLS = 16_384
"""Calls that have arrived at a server and that its event loop has not accepted yet."""

MAX_OPEN_CALLS = 4096
"""Calls that a server has open at once by default. An idle one takes 20 KiB."""

SMALL_MESSAGE_BYTES = 64 * 1024
"""Size of a request that has neither tensors nor files nor prompts."""

CHUNK_MESSAGE_BYTES = 4 * MIB
"""Size of one message of an upload. The contract names chunks of up to 1 MiB; 4 MiB is gRPC's default limit."""

PAIRING_MESSAGE_BYTES = 16 * 1024
"""Size of one message of pairing, at both ends. A signing request has about 500 bytes, a certificate about 1,000."""

PROMPTS_MESSAGE_BYTES = 17 * MIB
"""Size of a request with prompts: 64 prompts of 65,536 characters of up to 4 bytes, and 1 MiB for the rest."""

MAX_REQUEST_BYTES = {
    "EncoderService.GetInfo": SMALL_MESSAGE_BYTES,
    "EncoderService.FormatPrompt": PROMPTS_MESSAGE_BYTES,
    "EncoderService.EncodePrompts": PROMPTS_MESSAGE_BYTES,
    "VisionService.GetInfo": SMALL_MESSAGE_BYTES,
    "VisionService.EncodeImages": MAX_MESSAGE_BYTES,
    "VisionService.ConditionPrompt": MAX_MESSAGE_BYTES,
    "VisionService.ScoreImages": MAX_MESSAGE_BYTES,
    "GeneratorService.GetInfo": SMALL_MESSAGE_BYTES,
    "GeneratorService.Generate": MAX_MESSAGE_BYTES,
    "GeneratorService.SubmitJob": MAX_MESSAGE_BYTES,
    "GeneratorService.WatchJob": SMALL_MESSAGE_BYTES,
    "GeneratorService.GetJob": SMALL_MESSAGE_BYTES,
    "GeneratorService.ListJobs": SMALL_MESSAGE_BYTES,
    "GeneratorService.CancelJob": SMALL_MESSAGE_BYTES,
    "GeneratorService.UploadBlob": CHUNK_MESSAGE_BYTES,
    "GeneratorService.ListLoras": SMALL_MESSAGE_BYTES,
    "GeneratorService.UploadLora": CHUNK_MESSAGE_BYTES,
    "GeneratorService.RemoveLora": SMALL_MESSAGE_BYTES,
    "PairingService.BeginExchange": PAIRING_MESSAGE_BYTES,
    "PairingService.ConfirmExchange": PAIRING_MESSAGE_BYTES,
    "PairingService.Join": PAIRING_MESSAGE_BYTES,
}
"""Method -> size of one request message. A test compares the table with the contract."""

MAX_ITEMS = 1024
"""Prompts, images or texts in one call, whatever the settings of a service allow."""

MAX_STEPS = 4096
"""Denoising steps of one image, whatever the settings of a generator allow."""

MAX_EMBEDS_ROWS = 16_384
"""Tokens of one prompt, and rows of one image's states. A tensor of 48 MiB has 9,830 rows of 2,560 bf16 values."""

MAX_ELEMENTS = {
    # requests
    "EncodePromptsRequest.prompts": MAX_ITEMS,
    "FormatPromptRequest.prompts": MAX_ITEMS,
    "Conversation.messages": MAX_ITEMS,
    "EncodeOptions.layer_weights": 256,
    "EncodeOptions.steering": 64,
    "EncodeImagesRequest.images": MAX_ITEMS,
    "ScoreImagesRequest.images": MAX_ITEMS,
    "ScoreImagesRequest.texts": MAX_ITEMS,
    "ConditionOptions.token_weights": MAX_EMBEDS_ROWS,
    "SamplingOptions.sigmas": MAX_STEPS,
    "GenerationSpec.controls": 64,
    "GenerationSpec.loras": 64,
    "GenerationSpec.passes": 64,
    "SkipLayerGuidance.layers": 256,
    "OmniReferences.images": 64,
    "OmniReferences.siglip_embeds": 64,
    "OmniReferences.siglip_contents": 64,
    "Provenance.labels": MAX_ITEMS,
    "ListJobsRequest.states": 64,
    # parts of requests and of responses
    "PromptEmbeds.segments": 64,
    "EncoderFingerprint.layer_weights": 256,
    "EncoderFingerprint.modifications": 256,
    "Tensor.shape": 64,
    # responses
    "ServerVersion.libraries": MAX_ITEMS,
    "ConnectionInfo.permissions": 64,
    "EncoderServiceGetInfoResponse.features": MAX_ITEMS,
    "EncoderServiceGetInfoResponse.templates": MAX_ITEMS,
    "FormatPromptResponse.prompts": MAX_ITEMS,
    "FormattedPrompt.token_ids": 2 * MIB,  # at least one byte of text for each, and the chat template
    "EncodePromptsResponse.results": MAX_ITEMS,
    "VisionServiceGetInfoResponse.engines": 64,
    "VisionServiceGetInfoResponse.features": MAX_ITEMS,
    "VisionEngineInfo.calibrations": 4096,
    "EncodeImagesResponse.results": MAX_ITEMS,
    "ConditionReport.outliers": MAX_ITEMS,
    "ScoreImagesResponse.images": MAX_ITEMS,
    "ImageScores.probabilities": MAX_ITEMS,
    "ImageScores.cosines": MAX_ITEMS,
    "GeneratorServiceGetInfoResponse.features": MAX_ITEMS,
    "JobAccepted.sigmas": MAX_STEPS + 1,
    "JobAccepted.plan": 64,
    "JobAccepted.encoder_differences": 256,
    "ListJobsResponse.jobs": MAX_ITEMS,
    "ListLorasResponse.loras": 4096,
    "JoinResponse.permissions": 16,
    "JoinResponse.services": 16,
    "JoinResponse.hosts": 128,
}
"""Repeated field -> elements that one message may have, packed or not. They bound what parsing costs; the limits of a
service, which its GetInfo lists, are lower. A test compares the table with the contract."""

MAX_STRING_BYTES = 64 * 1024
"""Size of a string in a message, for example of an id, as UTF-8."""

MAX_TEXT_BYTES = MIB
"""Size of a text in a message, as UTF-8."""

TEXT_FIELDS = frozenset(
    {
        "ChatMessage.content",
        "ChatMessage.thinking",
        "Prompt.text",
        "Prompt.system_prompt",
        "Prompt.assistant_prefill",
        "Prompt.thinking_content",
        "Prompt.template",
        "StatesOptions.text",
        "StatesOptions.system_prompt",
        "ScoreImagesRequest.texts",
        "Provenance.prompt",
        "Provenance.negative_prompt",
    }
)
"""Strings of at most MAX_TEXT_BYTES."""

UNBOUNDED_STRINGS = frozenset({"FormattedPrompt.formatted_prompt", "EncodedPrompt.formatted_prompt"})
"""Strings of responses that hold several texts; the size of the message bounds them."""

MAX_TENSOR_BYTES = 48 * MIB
"""Size of one tensor: six times the longest prompt (1,504 tokens of 2,560 bf16 values are 7.7 MB)."""

MAX_TENSOR_RANK = 4
"""Prompt embeddings have 2 dimensions, SigLIP grids 3, latents 4."""

MAX_DETAILS_BYTES = 4096
"""Size of a status's details. They travel as HTTP/2 headers; larger ones arrive as RESOURCE_EXHAUSTED."""

MAX_REQUEST_ID_CHARS = 64
"""Length of a request id or a job id, which consist of [A-Za-z0-9._-]."""

MAX_RETRY_AFTER_S = 3600.0
"""Longest retry hint, sent or received. Longer ones and those that are no numbers count as this one."""

JOB_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Pattern of a job id. Ids are printed in commands and completed by shells, so that no other is accepted."""

DEFAULT_TEXT_LIMIT = 1504
"""Tokens of a prompt if neither request nor checkpoint sets a limit; the limit of the published Z-Image."""

MAX_SEED = (1 << 64) - 1
"""Largest seed of an image. Image i of a job has the job's seed + i, and the last one must not exceed it."""

MAX_OMNI_IMAGES = 8
"""Reference images of one Omni prompt: each adds up to 4,096 latent tokens and a SigLIP grid to every step."""

KEEPALIVE_S = 30
"""Interval at which our clients ping an idle connection."""

KEEPALIVE_TIMEOUT_S = 10
"""Seconds without an answer to a ping after which the connection is closed."""

DEFAULT_PORTS = {"encoder": 7501, "vision": 7502, "generator": 7503}
"""Role -> default port of the service."""

PAIRING_PORT = 50050
"""Default port of pairing."""

DEVICES = ("auto", "cuda", "mps", "cpu")
"""Values of --device."""
BFLOAT16_WEIGHTS = "bfloat16-weights"
"""Weights in bfloat16, computation in float32: the memory of one, on a CPU without bfloat16 units the speed of the
other."""
PLAIN_DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Values of --dtype in which weights and computation have the same data type."""
DTYPES = (*PLAIN_DTYPES, BFLOAT16_WEIGHTS)
"""Values of --dtype of the encoder and the generator."""
