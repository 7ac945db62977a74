"""The mathematics of masked diffusion: torch and shapes only. No trainer, no files, no global randomness.

Every function is a pure function of (batch, noise, predictions). Import the module you need:
`noise`, `corruption`, `importance`, `objective`, `token_loss`.
"""
