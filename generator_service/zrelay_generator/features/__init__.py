"""Features of a job, one folder each, with the protocol between them, the requests and the engine."""
