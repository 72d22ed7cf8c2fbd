"""`python -P -m zrelay_shared.healthcheck HOST:PORT [SERVICE]`: checks the health of a service, for docker.

SERVICE is a health name: `zrelay.v1.EncoderService` (ready: the model is loaded and the service does not drain) or
`liveness` (the event loop runs); without it the whole server is checked, which is the same as ready. The exit code is 0
for SERVING, 1 for any other state, 2 for wrong arguments.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from zrelay_shared.channels import CLIENT_OPTIONS

SERVING, NOT_SERVING, USAGE = 0, 1, 2
DEADLINE_S = 3.0
"""Shorter than the 5 s that the deploy files allow the whole command, which include the start of Python."""


def check(endpoint: str, service: str = "", *, deadline_s: float = DEADLINE_S) -> str:
    """Returns the state of a service: SERVING, NOT_SERVING, or the name of a gRPC code such as UNAVAILABLE."""
    with grpc.insecure_channel(endpoint, options=CLIENT_OPTIONS) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = stub.Check(request, timeout=deadline_s)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def main(arguments: list[str]) -> int:
    """Prints the state and returns the exit code."""
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        print("usage: python -P -m zrelay_shared.healthcheck HOST:PORT [SERVICE]", file=sys.stderr)
        return USAGE
    state = check(*arguments)
    print(state)
    return SERVING if state == "SERVING" else NOT_SERVING


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
