"""Turns prompts into token ids: the chat template, Omni segments, the tokenizer and token limits."""
