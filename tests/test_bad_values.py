"""Names and values that cannot be used are one clear error that names the field, before anything runs."""

from __future__ import annotations

import dataclasses

import pytest

from hf_ar2.collections import CollectionError
from hf_ar2.settings.values import check_name

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
