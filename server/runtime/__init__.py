"""This process and its kernel: tasks in the background, the event loop, signals, files."""
