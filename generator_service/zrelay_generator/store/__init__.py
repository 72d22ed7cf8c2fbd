"""Data that outlives the process: job records in SQLite, contents as files named by their SHA-256.

A leaf of the import order. Other packages use `protocol.JobStore`; `sqlite.SqliteJobStore` implements it for one
machine.
"""
