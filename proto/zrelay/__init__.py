"""zrelay's contract; the messages and stubs are in `zrelay.v1`."""
