#!/bin/bash
# A Ray cluster of machines that reach one another, with one replica of the model a GPU for rollouts:
#   on the machine that trains:     bash recipes/ray/cluster.sh head 0         (0: its GPUs stay with the trainer)
#   on each of the others:          bash recipes/ray/cluster.sh HEAD-ADDRESS 8 (8: the GPUs it gives)
#   then on the first machine:      remask rl --config run.yaml --rollout.engine ray --rollout.replicas 8 --rollout.max-lag 1
#   in the end on every machine:    ray stop
# Every machine needs the same Python with `pip install 'remask[ray]'`. The model itself is sent through Ray.
set -euo pipefail
head=$1 gpus=$2
if [ "$head" = head ]; then
  exec ray start --head --port=6379 --num-gpus="$gpus"
fi
exec ray start --address="$head:6379" --num-gpus="$gpus"
