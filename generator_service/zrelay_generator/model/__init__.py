"""Z-Image's transformer and VAE as a packed forward: tensors in, tensors out."""
