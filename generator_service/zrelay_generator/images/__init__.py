"""Image files: decoding, encoding and the provenance text inside them."""
