"""Runs: their folders, sweeps, processes and tables."""
