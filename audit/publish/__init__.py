"""Writing it down: takes DataFrames, imports neither torch nor mpmath."""
