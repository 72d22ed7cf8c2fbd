"""One order for waiting and running jobs: the queue, tick selection, admission."""
