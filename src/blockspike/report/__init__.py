"""The report: one page of figures, numbers, runs and a view inside a network."""
