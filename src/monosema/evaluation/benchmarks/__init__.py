"""Deeper benchmarks of a coder, offline, on data that the caller supplies.

Each is a function that returns a frozen report with its seed and bootstrap intervals; what a score means, and what
is known against it, is in the function's docstring. ``probes.py`` fits the linear probes that they share,
``rows.py`` checks and encodes the rows they are given.
"""
