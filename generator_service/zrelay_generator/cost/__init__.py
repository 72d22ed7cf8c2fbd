"""The cost model: how long a unit of work takes and how much memory it needs."""
