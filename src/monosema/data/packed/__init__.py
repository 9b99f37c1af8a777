"""Packed tokens on disk, a Hugging Face dataset: tokenised once, by ``write``, and memory-mapped by ``read``.

``manifest`` says what lies in the folder, ``contexts`` what lies in a file, ``layout`` what other libraries find there.
"""
