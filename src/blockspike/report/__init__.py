"""The report: one page with figures, numbers, runs and a look into a network."""
