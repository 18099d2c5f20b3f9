"""Formats of filesets: our own, the Analysis Grand Challenge's, coffea's."""
