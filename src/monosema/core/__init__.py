"""What every room needs and nothing more: errors, configs, random streams, devices, files, progress.

Imports nothing else of the package. Start with ``errors`` and ``config``.
"""
