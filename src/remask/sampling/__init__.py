"""Writing answers. One sampler serves rollout, evaluation and chat.

`denoise` takes and gives tensors; `generate` takes prompts and gives texts; `Decoding` holds the settings.
"""

from remask.sampling.denoise import denoise, run
from remask.sampling.generate import Generated, generate
from remask.sampling.record import Denoised, Earlier, Step
from remask.sampling.schedule import Decoding

__all__ = ["Decoding", "Denoised", "Earlier", "Generated", "Step", "denoise", "generate", "run"]
