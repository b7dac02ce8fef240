"""What outlives a worker: functions and calls in SQLite, instances and calls in flight on tmpfs."""
