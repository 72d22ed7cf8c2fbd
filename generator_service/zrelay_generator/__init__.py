"""The generator service: prompt_embeds to images with a Z-Image transformer and VAE."""
