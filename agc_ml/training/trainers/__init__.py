"""Trainers: gradient-boosted trees, neural networks, and the trials of a search."""
