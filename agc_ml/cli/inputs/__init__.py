"""``agc-ml fileset``."""
