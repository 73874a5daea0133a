#!/bin/bash
# A recipe on several machines of a SLURM cluster, one task for each machine and one process for each GPU:
#   sbatch recipes/slurm.sh recipes/ar2/natural-questions.yaml --collection data/nq --output_dir /shared/runs/nq
# Options of sbatch come before the script: sbatch --nodes 4 --partition gpu recipes/slurm.sh …
# To continue after the time limit or after a rank has died, submit the same line again.
#SBATCH --job-name=hf-ar2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch recipes/slurm.sh RECIPE.yaml [--key value ...]" >&2
    exit 2
fi
# The environment that runs the recipe; `make install` writes .venv.
source "${VENV:-.venv}/bin/activate"

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
main=${hosts%%$'\n'*}
# Two jobs that share machine 0 need ports of their own.
port=$((20000 + SLURM_JOB_ID % 10000))
# Models and data are downloaded before: compute nodes often have no network, and a missing file then fails at once.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# A lost connection ends the job instead of waiting for ddp_timeout, and says which rank was lost.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export OMP_NUM_THREADS=$((${SLURM_CPUS_PER_TASK:-8} / ${SLURM_GPUS_ON_NODE:-8}))

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv_backend c10d --rdzv_endpoint "$main:$port" --rdzv_id "$SLURM_JOB_ID" \
    recipes/run.py "$@"
