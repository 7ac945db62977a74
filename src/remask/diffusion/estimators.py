"""Every estimator of an answer's likelihood, by its name (docs/theory.md §8)."""

from __future__ import annotations

from remask.choices import LikelihoodName
from remask.diffusion.block_random import block_random_views
from remask.diffusion.blocks import places
from remask.diffusion.likelihood import (
    Estimator,
    coupled_views,
    elbo_coupled_views,
    elbo_views,
    mean_field_views,
)
from remask.diffusion.quadrature import Quadrature
from remask.diffusion.trajectory import Trajectory

ESTIMATORS: dict[LikelihoodName, Estimator] = {
    "mean_field": Estimator(mean_field_views),
    "elbo": Estimator(elbo_views),
    "elbo_gauss": Quadrature(),
    "elbo_coupled": Estimator(elbo_coupled_views),
    "coupled": Estimator(coupled_views),
    "block_random": Estimator(block_random_views),
    "trajectory": Trajectory(),
    "left_to_right": Trajectory(steps=places),
    "pseudo": Trajectory(steps=places, alone=True),
}
