"""``agc-ml run``, ``measure`` and ``plan``."""
