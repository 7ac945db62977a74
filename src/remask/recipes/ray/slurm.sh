#!/bin/bash
# Two nodes of 8 GPUs under Slurm: the first trains by DDP, the second answers with 8 replicas, one for each process:
#   sbatch recipes/ray/slurm.sh --config run.yaml --rollout.max-lag 1
#SBATCH --job-name=remask-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
# Remask saves a checkpoint on SIGTERM; submit again with --resume auto.
set -euo pipefail
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
export RAY_ADDRESS=$head:6379

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --port=6379 --num-gpus=0 --block &
sleep 15
for node in "${nodes[@]:1}"; do
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" ray start --address="$RAY_ADDRESS" --num-gpus=8 --block &
done
sleep 15

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" accelerate launch --num_processes 8 -m remask.cli \
  rl --rollout.engine ray --rollout.replicas 1 "$@" &
run=$!
trap 'kill -TERM "$run"; wait "$run"' TERM
wait "$run"
