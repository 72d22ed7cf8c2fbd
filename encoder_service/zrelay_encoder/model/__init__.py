"""The text encoder: network, loading and fingerprint. Tensors only."""
