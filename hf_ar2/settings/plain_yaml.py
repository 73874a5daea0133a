"""YAML from untrusted files."""

from __future__ import annotations

from typing import Any

import yaml

# Characters of a file, and values in it after every alias is expanded.
MOST_CHARACTERS, MOST_VALUES = 1_000_000, 100_000


def read_yaml(text: str | bytes) -> Any:
    """The content of a YAML document, as plain data.

    Raises:
        ValueError: in one line: not YAML, not UTF-8, too large, nested too deeply, too many values after expansion, or
            a key that comes twice in a mapping.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"found {len(text):,} characters, expected YAML of at most {MOST_CHARACTERS:,}")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        _check_keys(node, set())
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("not valid YAML: nested too deeply") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """The values in a node; an alias is the node that it names, again."""
    if id(node) not in counted:
        counted[id(node)] = MOST_VALUES + 1  # of a node that contains itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        counted[id(node)] = 1 + sum(_count(part, counted) for part in inner)
        if counted[id(node)] > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values, those that aliases repeat included")
    elif counted[id(node)] > MOST_VALUES:
        raise ValueError("an alias contains itself")
    return counted[id(node)]


def _check_keys(node: yaml.Node, seen: set[int]) -> None:
    """Raise for a key that comes twice in a mapping; PyYAML would silently keep the last one."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"the key {key.value!r} comes twice, in lines {lines[key.value]} and {line}")
            lines[key.value] = line
    for part in node.value:
        for one in part if isinstance(part, tuple) else (part,):
            _check_keys(one, seen)
