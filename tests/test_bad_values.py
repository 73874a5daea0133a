"""Names and values that cannot be used are one clear error that names the field, before anything runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from attacks.bad_values import BAD_OVERRIDES, BAD_VALUES, recipe, with_value
from conftest import write_recipe

from hf_ar2.collections import CollectionError
from hf_ar2.recipes.checks import check_settings
from hf_ar2.recipes.loading import load_recipe
from hf_ar2.recipes.recipe import RecipeError
from hf_ar2.settings.fields import check_values
from hf_ar2.settings.plain_yaml import read_yaml
from hf_ar2.settings.values import check_name
from hf_ar2.trainers import AR2Config, LTReConfig, RankerConfig, RetrieverConfig, RocketQAv2Config

# ---- Names ----------------------------------------------------------------------------------------------------------


PATHS = "|.|..|.hidden|../up|a/b|a\\b|/absolute|C:|a:b|-a| a|a |a.|con|NUL.txt|Com1".split("|")
OTHERS = ["a*", "a?", 'a"b', "a|b", "<a>", "a\n", "a\x1b[2J", "a\u202eb", "x" * 101, 3, None, True, ["a"]]


@pytest.mark.parametrize("name", [*PATHS, *OTHERS])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="^found .* expected a name: letters"):
        check_name(name)


def test_a_split_becomes_a_file_so_it_has_a_name(tiny_collection):
    splits = {"../up": tiny_collection.qrels["test"]}
    with pytest.raises(CollectionError, match=r"collection 'tiny': split: found '\.\./up', expected a name"):
        dataclasses.replace(tiny_collection, qrels=splits)


# ---- Values ---------------------------------------------------------------------------------------------------------


def test_the_recipe_without_a_bad_value_is_fine(tmp_path):
    check(write_recipe(tmp_path / "tiny.yaml", recipe()))


def check(path, overrides=None):
    """All checks that need neither models nor a collection."""
    check_settings(load_recipe(path, overrides), path.parent / "run")


@pytest.mark.parametrize("path", BAD_VALUES)
def test_a_value_that_no_field_takes_is_an_error_that_names_the_field(path, tmp_path):
    for value in BAD_VALUES[path]:
        written = write_recipe(tmp_path / "tiny.yaml", with_value(path, value))
        with pytest.raises(RecipeError) as raised:
            check(written)
        message = str(raised.value)
        assert "\n" not in message and len(message) < 500, message
        *parents, name = path.split(".")
        assert ".".join(parents) in message and name in message, f"{value!r}: {message}"


@pytest.mark.parametrize("key", BAD_OVERRIDES)
def test_a_value_of_the_command_line(key, tmp_path):
    written = write_recipe(tmp_path / "tiny.yaml", recipe())
    for text in BAD_OVERRIDES[key]:
        with pytest.raises(RecipeError) as raised:
            check(written, {key: text})
        message = str(raised.value)
        assert "\n" not in message and key.split(".")[-1] in message, f"{text!r}: {message}"


def test_good_values_that_look_unusual(tmp_path):
    body = recipe()
    body["args"] |= {"learning_rate": 1, "num_train_epochs": 2, "warmup_steps": 3}
    written = write_recipe(tmp_path / "tiny.yaml", body)
    given = {
        "warm.max_steps": "1e3",
        "eval_strategy": "no",
        "joint.teacher_gate": "off",
        "learning_rate": "1e-5",
    }
    loaded = load_recipe(written, given)
    assert loaded.stage_args("warm")["max_steps"] == 1000 and loaded.args["eval_strategy"] == "no"
    assert loaded.stage_args("joint")["teacher_gate"] == "off" and loaded.args["learning_rate"] == 1e-5


@pytest.mark.parametrize("config", [RetrieverConfig, RankerConfig, AR2Config, RocketQAv2Config, LTReConfig])
def test_a_configuration_takes_its_own_defaults_and_values(config, tmp_path):
    args = config(output_dir=tmp_path, use_cpu=True, cache_dir=tmp_path, eval_metrics=("mrr@10",))
    check_values(dataclasses.replace(args, max_steps=np.int64(5)))
    for bad in ({"max_steps": "5"}, {"gradient_accumulation_steps": 0}, {"learning_rate": float("nan")}):
        with pytest.raises(ValueError, match=f"^{next(iter(bad))}: found .*, expected a"):
            config(output_dir=tmp_path, **bad)


# ---- YAML -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 1_000, "nested too deeply"),
        ("&a [*a]", "an alias contains itself"),
        (
            "a0: &a0 [x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
            "more than 100,000 values",
        ),
        (
            "a0: &a0 {k: v}\n"
            + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)),
            "more than 100,000 values",
        ),
        ("x" * 1_000_001, "found 1,000,001 characters"),
        (b"\xff\xfe\x00\x01\x02", "not valid YAML"),
        (b"\x1f\x8b\x08\x00\x00", "not valid YAML"),
        ("a: \x1b[2J", "not valid YAML"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML"),
        ("a: 2024-13-45", "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("9" * 5000, "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
    ],
)
def test_yaml_that_cannot_be_read_is_one_line(text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        read_yaml(text)
    assert "\n" not in str(raised.value)
    path = tmp_path / "tiny.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=r"tiny.yaml: "):
        load_recipe(path)


def test_aliases_and_merges_of_usual_size_are_read():
    text = "common: &common {seed: 1}\nargs: {<<: *common, max_steps: 2}\nagain: *common"
    assert read_yaml(text)["args"] == {"seed": 1, "max_steps": 2} and read_yaml("") is None
