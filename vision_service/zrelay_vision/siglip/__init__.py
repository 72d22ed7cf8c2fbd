"""The SigLIP2 engine: spatial grids of images, and scores of images and texts."""
