"""The script for SLURM, with stand-ins for the programs of a cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "recipes" / "slurm.sh"


def submit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script as the first machine of a job of two would; `srun` runs what it is given, `torchrun` shows it."""
    programs = {
        "bin/scontrol": "printf 'node-a\\nnode-b\\n'",
        "bin/srun": 'shift; exec "$@"',
        "bin/torchrun": 'echo "$OMP_NUM_THREADS $HF_HUB_OFFLINE"; echo "$@"',
        "venv/bin/activate": "",
    }
    for name, body in programs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "123456"}
    job |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64", "VENV": str(folder / "venv")}
    environment = {
        **os.environ,
        **job,
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }
    return subprocess.run(["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def test_every_machine_of_a_job_starts_a_process_for_each_gpu(tmp_path: Path) -> None:
    done = submit(tmp_path, "recipes/quickstart.yaml", "--models.light.layers", "[0, 1]")
    assert done.returncode == 0, done.stderr
    environment, arguments = done.stdout.splitlines()
    assert environment == "8 1"
    assert arguments == (
        "--nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint node-a:23456 --rdzv_id 123456 "
        "recipes/run.py recipes/quickstart.yaml --models.light.layers [0, 1]"
    )


def test_without_a_recipe_it_says_how_it_is_called(tmp_path: Path) -> None:
    done = submit(tmp_path)
    assert done.returncode == 2 and "usage: sbatch recipes/slurm.sh RECIPE.yaml" in done.stderr
