"""The Qwen3-VL engine: hidden states of an image in the space of the text encoder."""
