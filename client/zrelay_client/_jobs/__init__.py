"""Jobs of this client: one from its submission to its end, and many at a time."""
