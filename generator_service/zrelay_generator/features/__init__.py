"""Capabilities of a job, one folder each, and what a job asks for."""
