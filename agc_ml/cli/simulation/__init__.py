"""Commands that generate events."""
