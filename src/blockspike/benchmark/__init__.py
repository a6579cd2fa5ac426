"""Speed measurements, each with the claim that it supports."""
