"""The service's interface: the servicer, request parsing, contents and replies."""
