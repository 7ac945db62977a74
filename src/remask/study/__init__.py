"""Grids of runs: methods × anything else × seeds, each trained and evaluated once, compared with intervals."""
