"""Measurements of speed, each beside the claim that it supports."""
