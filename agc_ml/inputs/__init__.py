"""Inputs: files, datasets and filesets, the formats they are stored in, and their sources."""
