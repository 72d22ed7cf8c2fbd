"""The cost model: how long a unit of work takes and how much memory it needs.

A leaf: it knows sizes and seconds, no jobs. `engine.estimates` applies it to jobs.
"""
