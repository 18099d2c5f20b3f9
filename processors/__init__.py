"""Analyses: physics only. They know histograms and variations, not files, clusters or fits."""
