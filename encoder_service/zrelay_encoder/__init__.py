"""The encoder service: prompts to prompt_embeds with the first blocks of a Qwen3."""
