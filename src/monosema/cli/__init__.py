"""The command line: one file per verb, nothing but parse, call, print. Start with ``main``."""
