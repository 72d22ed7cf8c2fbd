"""The step engine: which work the next tick does, doing it once, and what it costs. Knows no message."""
