"""Image files: reading, writing, and the provenance inside them."""
