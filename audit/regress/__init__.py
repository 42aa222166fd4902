"""Two reports compared: what got worse, against which baseline."""
