"""Commands that start services of one's own."""
