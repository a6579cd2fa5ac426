"""Searches for hyperparameters by Optuna: their space, their study, and their trials as runs."""
