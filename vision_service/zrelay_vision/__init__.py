"""The vision service: reference images to SigLIP2 grids and Qwen3-VL states, and prompts conditioned by them."""
