"""Hydra's configuration: schemas, allowed classes and the objects built from it."""
