#!/bin/bash
# Two nodes of 8 GPUs under Slurm: sbatch recipes/accelerate/slurm.sh sft --config run.yaml
#SBATCH --job-name=remask
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
# Remask saves a checkpoint on SIGTERM; submit again with --resume auto.
set -euo pipefail
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export address
exec srun bash -c 'exec accelerate launch --config_file recipes/accelerate/ddp-2-nodes.yaml \
  --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * 8)) \
  --machine_rank "$SLURM_NODEID" --main_process_ip "$address" -m remask.cli "$@"' -- "$@"
