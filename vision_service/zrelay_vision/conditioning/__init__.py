"""Conditions a prompt with the hidden states of an image. Free functions over tensors."""
