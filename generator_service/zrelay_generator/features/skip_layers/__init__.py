"""Skip-layer guidance."""
