"""Commands that build filesets."""
