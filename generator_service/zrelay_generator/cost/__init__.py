"""The cost model: how long a unit of work takes and how much memory it needs.

A leaf of the import order: it knows sizes and seconds, not jobs. `engine.estimates` applies it to jobs.
"""
