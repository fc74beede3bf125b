"""Judges: they take pictures in as they come, and give their numbers, with N and an interval, at the end."""
