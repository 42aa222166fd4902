"""What is true: KL divergences in arbitrary precision. Imports no torch."""
