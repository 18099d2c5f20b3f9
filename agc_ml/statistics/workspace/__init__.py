"""Workspaces: from a fit configuration and templates to the HistFactory model."""
