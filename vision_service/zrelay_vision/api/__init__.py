"""The gRPC side of the vision service: the servicer, request parsing, replies and the list of capabilities."""
