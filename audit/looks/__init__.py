"""One table of the report, one file: what it measures."""
