"""Figures drawn from tables and files of runs; nothing here trains or simulates."""
