"""Diffusion language models on transformers' own classes. Importing this package registers their layouts."""

from remask.models.registry import register

register()
