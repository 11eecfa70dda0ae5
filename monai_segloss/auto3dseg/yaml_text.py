"""Edits of a YAML text that leave the rest of it byte for byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

__all__ = ["replace_entry", "replace_items"]


def replace_entry(text: str, keys: Sequence[str], value: Mapping[str, Any]) -> str:
    """A YAML text with the block mapping's entry at ``keys`` replaced, the rest byte for byte.

    Comments inside the entry go with it.

    Raises:
        ValueError: if there is no such entry, or it stands in braces.
    """
    *above, last = keys
    key, old = _find(text, above, last)
    indent = " " * key.start_mark.column
    new = yaml.safe_dump({last: dict(value)}, sort_keys=False, width=100)
    start, end = key.start_mark.index - len(indent), _line_end(text, _end(old))
    return text[:start] + _indented(new, indent) + text[end:]


def replace_items(
    text: str, keys: Sequence[str], target: str, value: Mapping[str, Any] | None
) -> str:
    """A YAML text whose block list at ``keys`` ends with one item of a ``_target_``, or with none.

    Raises:
        ValueError: if there is no such list.
    """
    *above, last = keys
    _, items = _find(text, above, last)
    if not isinstance(items, yaml.SequenceNode) or items.flow_style or not items.value:
        raise ValueError(f"{'#'.join(keys)}: expected a list of one '- ' a line")
    indent = " " * items.start_mark.column
    end = _line_end(text, _end(items))
    new = ""
    if value is not None:
        new = _indented(yaml.safe_dump([dict(value)], sort_keys=False, width=100), indent)
    if end and text[end - 1] != "\n":
        new = "\n" + new
    text = text[:end] + new + text[end:]
    for item in reversed(items.value):
        if _target_of(item) == target:
            start = text.rindex("\n", 0, item.start_mark.index) + 1
            text = text[:start] + text[_line_end(text, _end(item)) :]
    return text


def _find(text: str, above: Sequence[str], last: str) -> tuple[yaml.Node, yaml.Node]:
    """The nodes of a key and its value in a block mapping."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for name in (*above, last):
        if not isinstance(node, yaml.MappingNode) or node.flow_style:
            raise ValueError(f"{'#'.join((*above, last))}: expected a block of 'key: value' lines")
        found = [(k, v) for k, v in node.value if k.value == name]
        if not found:
            raise ValueError(f"{'#'.join((*above, last))}: expected this entry, found none")
        key, node = found[0]
    return key, node


def _target_of(node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((v.value for k, v in node.value if k.value == "_target_"), None)


def _end(node: yaml.Node) -> int:
    """Index behind a node's last character; a block's own mark lies behind its blank lines."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        child = node.value[-1]
        return _end(child[1] if isinstance(child, tuple) else child)
    return int(node.end_mark.index)


def _line_end(text: str, index: int) -> int:
    newline = text.find("\n", max(index - 1, 0))
    return len(text) if newline < 0 else newline + 1


def _indented(text: str, indent: str) -> str:
    return "".join(indent + line for line in text.splitlines(keepends=True))
