"""Calls to the vision service, and reference images of a generation."""
