"""Preference optimisation: DPO on likelihood estimates, with VRPO's variance reductions."""
