"""What every kind of training shares: the run's folder, its checkpoints, its record, weights that are sharded."""
