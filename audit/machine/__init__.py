"""Where things run: devices, what a path gives on one, and what environment.json says of both."""
