"""Neurons fitted to recordings."""
