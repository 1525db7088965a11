"""YAML as settings need it: no key twice, and no aliases that make much of little."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MOST_VALUES = 10_000
"""Values that a file may hold, each alias counted as all that it stands for."""


class StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which the library would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Make a dictionary of a mapping.

        Raises:
            yaml.YAMLError: a key stands in it twice, with its line.
        """
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                problem = f'the key "{key.value}" is given twice; keep one of them'
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Parse YAML; an empty file holds no settings.

    Raises:
        ValueError: it is malformed, has a key twice, or more values than settings have.
        RecursionError: it is nested too deeply.
    """
    loader = StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if count_values(node, {}) > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values, those that aliases repeat included")
        return loader.construct_document(node) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    finally:
        loader.dispose()


def count_values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Count the values of a node as they are once every alias is written out; one inside itself has no end.

    Args:
        node: the node.
        known: the counts of the nodes that were met before.
    """
    if node not in known:
        known[node] = MOST_VALUES + 1  # while it is counted: what holds itself is too much
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        known[node] = 1 + sum(count_values(each, known) for each in inner)
    return known[node]
