"""The gRPC side of the encoder: the servicer, request parsing and the list of capabilities."""
