"""Damaged files are found; tests/attacks/damage.py tries every file."""

from __future__ import annotations

import fnmatch
import os

import pytest
from attacks.damage import attack, make_targets

FILES = {
    "index": ["ids.json", "meta.json"],
    "run": ["runs/after/test.retriever.trec", "stages/warm/retriever/model.safetensors"],
    "checkpoint": ["rng_state.pth"],
    "served": ["retriever/model.safetensors"],
    "two": ["index/embeddings-*.1-of-2.npy"],
    "trainer": ["rng_state_1.pth", "pool/passage_rows.npy"],
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_damage_gives_the_same_results_or_an_error_that_names_the_file(tmp_path):
    targets = make_targets(tmp_path)
    lines: list[str] = []
    for kind, patterns in FILES.items():
        target = targets[kind]
        names = [name for name in target.names() if any(fnmatch.fnmatch(name, p) for p in patterns)]
        assert len(names) == len(patterns)
        lines += attack(target, names, tmp_path)
    assert len(lines) >= 3 * sum(map(len, FILES.values()))
    assert not [line for line in lines if line.startswith("FINDING")]
