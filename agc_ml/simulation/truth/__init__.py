"""Generated events at particle level: Pythia, decay chains and truth records."""
