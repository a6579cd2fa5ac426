"""Pictures of runs, sweeps, fits and searches, and the report."""
