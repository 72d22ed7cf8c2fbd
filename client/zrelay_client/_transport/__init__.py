"""Channels, deadlines and endpoints: how the client reaches a service."""
