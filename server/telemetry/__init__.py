"""What operators see of a process: log lines and metrics."""
