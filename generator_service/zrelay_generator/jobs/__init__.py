"""Jobs as callers know them: accepted, persisted, watched, cancelled, continued after a restart.

`manager.JobManager` is the entry point. A job is a frozen `store.records.JobRecord`; `transitions.transition` makes the
next record from an event; `live.LiveJob` is what the process adds while the job is not over.
"""
