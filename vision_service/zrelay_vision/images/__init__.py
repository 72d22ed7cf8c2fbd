"""Image files: a store by digest, and a cache bounded in bytes."""
