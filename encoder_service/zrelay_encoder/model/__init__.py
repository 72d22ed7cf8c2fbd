"""The text encoder: network, loading and fingerprint. It works on tensors and knows no requests."""
