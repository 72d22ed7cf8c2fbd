"""What outlives the process: jobs as rows of SQLite, contents as files named by their SHA-256."""
