"""The recipes for large collections fit the GPUs that they name: counted, because no GPU has run them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from transformers import BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).with_name("benchmarks")))

from recipe_memory import GPU, bytes_kept, comment, count, estimate, large_recipes

RECIPES = large_recipes()


def test_fake_tensors_keep_what_real_ones_keep():
    network = BertForSequenceClassification(tiny_config(num_labels=1)).train()
    ids = torch.ones(3, 20, dtype=torch.long)
    real = bytes_kept(network, ids)
    with torch._subclasses.fake_tensor.FakeTensorMode() as mode:
        fake = BertForSequenceClassification(tiny_config(num_labels=1)).train()
        # transformers drops a mask without padding, but cannot see that of a fake one.
        assert real <= bytes_kept(fake, mode.from_tensor(ids)) < 1.05 * real
    assert bytes_kept(network, ids[:2]) == pytest.approx(real * 2 / 3, rel=0.2)


@pytest.mark.slow
def test_the_counts_are_those_of_the_architectures():
    base, large = count("nghuyong/ernie-2.0-base-en", 128), count("nghuyong/ernie-2.0-large-en", 128)
    assert base.weights == pytest.approx(110e6, rel=0.02) and large.weights == pytest.approx(335e6, rel=0.02)
    assert base.work == pytest.approx(128 * 2 * 85e6, rel=0.1)  # 2 operations per weight and token
    # Korthikanti et al. (2022): 34 bytes per token, layer and dimension, with norms in half precision.
    assert 34 < base.row / (128 * 12 * 768) < 60


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_stage_fits_the_gpu_and_the_recipe_says_what_it_needs(path):
    memory = estimate(path)[0]
    for stage, size in memory.items():
        assert size * 1e9 < 0.9 * GPU, f"{stage} needs {size:.0f} GB; lower its mini_batch_size"
    line = re.search(r"^# Estimated, never run: .*", path.read_text(), re.M)
    assert line, f"add this line before the recipe's name: {comment(path)}"
    pattern = r"(\d+) GB on .* 80 GB, (\d+) GB of disk, (\d+) hours"
    written, found = (re.search(pattern, text).groups() for text in (line[0], comment(path)))
    for number, counted in zip(written, found, strict=True):
        assert int(number) == pytest.approx(int(counted), rel=0.1, abs=1), comment(path)


def test_every_large_recipe_is_counted():
    assert {f"{path.parent.name}/{path.stem}" for path in RECIPES} >= {
        f"{method}/{collection}"
        for method in ("ar2", "pair", "rocketqa", "rocketqav2")
        for collection in ("ms-marco", "natural-questions")
    }
