"""Limits and words that clients and servers must agree on. Every help imports this module, so it imports nothing."""

MIB = 1 << 20

MAX_MESSAGE_BYTES = 64 * MIB
"""Size of one gRPC message, at both ends. A 4096 x 4096 PNG of noise (50 MiB) fits."""

MAX_MESSAGE_FIELDS = 16_384
"""Fields of one message, at all levels: more than twice the longest list of jobs (200 jobs of 30 fields). 64 MiB could
hold 32 million fields, and parsing those takes minutes and gigabytes."""

MAX_OPEN_CALLS = 4096
"""Calls that a server has open at once by default. An idle one takes 20 KiB."""

MAX_TENSOR_BYTES = 48 * MIB
"""Size of one tensor: six times the longest prompt (1,504 tokens of 2,560 bf16 values are 7.7 MB)."""

MAX_TENSOR_RANK = 4
"""Prompt embeddings have 2 dimensions, SigLIP grids 3, latents 4."""

MAX_DETAILS_BYTES = 4096
"""Size of a status's details. They travel as HTTP/2 headers; larger ones arrive as RESOURCE_EXHAUSTED."""

MAX_REQUEST_ID_CHARS = 64
"""Length of a request id, which consists of [A-Za-z0-9._-]."""

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

LEAST_PING_INTERVAL_S = 5
"""Interval of pings that servers permit, also without calls. Clients of other makes ping every 10 s (the least that
grpc-go allows); half of that leaves room for pings that arrive unevenly. A server ends a connection that pings more
often."""

KEEPALIVE_TIMEOUT_S = 10
"""Seconds without an answer to a ping after which the connection is closed."""

DEFAULT_PORTS = {"encoder": 7501, "vision": 7502, "generator": 7503}
"""Role -> default port of the service."""

DEVICES = ("auto", "cuda", "mps", "cpu")
"""Values of --device."""
BFLOAT16_WEIGHTS = "bfloat16-weights"
"""Weights in bfloat16, computation in float32: the memory of one, on a CPU without bfloat16 units the speed of the
other."""
PLAIN_DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Values of --dtype in which weights and computation have the same data type."""
DTYPES = (*PLAIN_DTYPES, BFLOAT16_WEIGHTS)
"""Values of --dtype of the encoder and the generator."""
