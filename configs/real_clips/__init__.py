"""Experiment configs: what is run, one ml_collections file per experiment."""
