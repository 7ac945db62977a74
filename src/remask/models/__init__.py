"""Diffusion language models on transformers' own classes. Importing this package registers their layouts."""

import logging

from remask.models.registry import register

# peft imports bitsandbytes where it is installed, which then warns of optional kernels on every command.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

register()
