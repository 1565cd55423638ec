"""Sweeps along the axes of papers' own ablations, on laws that are known: python -m experiments.ablate sweep --config=..."""
