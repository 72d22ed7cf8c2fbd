"""Requests in and replies out: the servicer, request parsing, replies, uploads."""
