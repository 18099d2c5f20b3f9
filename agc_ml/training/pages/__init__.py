"""Web pages of the training service."""
