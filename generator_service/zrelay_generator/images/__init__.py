"""Image files: decoding to tensors, encoding and the provenance text inside them."""
