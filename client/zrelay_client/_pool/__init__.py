"""Several encoders or generators: selection, failover and uploads."""
