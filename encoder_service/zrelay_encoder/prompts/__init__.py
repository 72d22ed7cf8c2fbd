"""From a prompt to token ids: the chat template, Omni segments, the tokenizer and token limits."""
