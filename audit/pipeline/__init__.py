"""What a run covers, and the loop that makes it."""
