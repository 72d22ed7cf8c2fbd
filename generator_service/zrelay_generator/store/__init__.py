"""What outlives the process: job records in SQLite, contents as files named by their SHA-256.

A leaf: `protocol.JobStore` is what the rest uses, `sqlite.SqliteJobStore` the implementation for one machine.
"""
