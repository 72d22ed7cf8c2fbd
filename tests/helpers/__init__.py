"""Helpers that several test folders share: `from tests.helpers.images import picture`.

Modules here may import the product, pytest never has to collect them, and none of them imports a test folder.
"""
