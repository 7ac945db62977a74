"""Diffusion language models on transformers' own classes. Importing this package registers their layouts."""

from remask.models.llada import register

register()
