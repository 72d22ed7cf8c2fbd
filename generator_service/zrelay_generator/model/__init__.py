"""Z-Image's transformer and VAE: loading, the packed forward, attention, decoding. Tensors in, tensors out."""
