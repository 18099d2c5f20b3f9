"""agc-ml."""
