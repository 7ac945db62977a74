"""The ELBO with fixed shares masked: an integral over the share by Gauss and Legendre's rule (GDPO, arXiv 2510.08554).

Shapes: B batch, L length, K draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import Draws, Estimator, Views, elbo_views, share_views
from remask.diffusion.noise import Noise


@dataclass(frozen=True)
class Quadrature(Estimator):
    """An estimator whose K draws mask fixed shares τ of the answer, the K points of the rule in (0, 1). Noise decides
    which tokens are masked. In a block model every block has the same τ.
    """

    views: Views = elbo_views

    def draws(self, batch: Canvas, noise: Sequence[Noise], mask_id: int) -> Draws:
        """Return a view for each point: the mean of their values is the rule's sum, Σ_q w_q/2 · (n/k_q) Σ log p."""
        points, weights = np.polynomial.legendre.leggauss(len(noise))
        found = []
        for draw, point, weight in zip(noise, points.tolist(), weights.tolist(), strict=True):
            tau = torch.full((len(batch.ids), 1), (point + 1) / 2, dtype=torch.float64, device=batch.ids.device)
            (view,) = share_views(batch, draw.u, tau, mask_id)
            found.append((replace(view, weight=view.weight * (len(noise) * weight / 2)),))
        return found
