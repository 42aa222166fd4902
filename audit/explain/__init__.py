"""What a result means: a diagnosis, the smallest example of a finding, what an audit covers."""
