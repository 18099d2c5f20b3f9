"""Results of runs: histograms, tables, the event ledger, run records and directories."""
