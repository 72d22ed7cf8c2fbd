"""Image files: decoding, a store by digest, and a cache bounded in bytes."""
