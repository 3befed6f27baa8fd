"""Solver schedules: the space that is searched, and many of them evaluated in one batch."""
