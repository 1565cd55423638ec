"""How a config is run: stages, data, checkpoints, devices, metrics, figures."""
