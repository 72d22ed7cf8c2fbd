"""Between messages and our own values: requests parsed and refused, replies made."""
