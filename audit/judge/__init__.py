"""Judgement: how far off a result is, and how far off it may be."""
