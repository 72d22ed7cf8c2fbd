"""Every limit that both ends of a wire must agree on, each with its reason."""

MIB = 1 << 20

MAX_MESSAGE_BYTES = 64 * MIB
"""One gRPC message, on both ends: a 4096 x 4096 PNG of pure noise (50 MiB) fits, a mistake does not."""

MAX_MESSAGE_FIELDS = 16_384
"""Fields of one message, at all levels: twice the longest list of jobs (200 of 30 fields). 64 MiB could hold
32 million, and parsing those takes minutes and gigabytes."""

MAX_TENSOR_BYTES = 48 * MIB
"""One tensor: six times the longest prompt (1,504 tokens of 2,560 bf16 values are 7.7 MB)."""

MAX_TENSOR_RANK = 4
"""Prompt embeddings have 2 dimensions, SigLIP grids 3, latents 4."""

MAX_DETAILS_BYTES = 4096
"""Status details of a refusal; larger ones arrive as RESOURCE_EXHAUSTED, since they travel as HTTP/2 headers."""

MAX_REQUEST_ID_CHARS = 64
"""Request ids, of [A-Za-z0-9._-]."""

DEFAULT_TEXT_LIMIT = 1504
"""Tokens of a prompt where neither request nor checkpoint names a limit: that of the published Z-Image."""

MAX_OMNI_IMAGES = 8
"""Reference images of one Omni prompt: each adds up to 4,096 latent tokens and a SigLIP grid to every step."""

KEEPALIVE_S = 30
"""Clients ping an idle connection this often; servers must permit it, or they kill healthy calls."""

KEEPALIVE_TIMEOUT_S = 10
"""A ping unanswered for this long ends the connection."""

DEFAULT_PORTS = {"encoder": 7501, "vision": 7502, "generator": 7503}
"""Where each service listens unless told otherwise."""
