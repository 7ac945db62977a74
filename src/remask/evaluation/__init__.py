"""Evaluation: run a model on tasks, and tell a difference from noise."""
