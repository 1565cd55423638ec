"""The mathematics: schedules, predictions, levels, grids, solvers, sampling, oracles."""
