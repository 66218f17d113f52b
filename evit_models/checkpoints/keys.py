"""Names of tensors: ours, those of the original EfficientViT project, and those of timm.

A rule is a pair of prefixes, ours and theirs; `{j+1}` stands for an integer that is one larger
there than `{j}` is here. The first rule that fits wins. What follows the prefix is translated by
the pairs of the rule.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

SOURCES = ("original", "timm")

Pairs = tuple[tuple[str, str], ...]


class Rule(NamedTuple):
    """One place in the network: its prefix here, its prefix there, and the names inside it."""

    ours: str
    theirs: str
    inside: Pairs


_LAYER: Pairs = (("conv.", "conv."), ("norm.", "norm."))
_PLAIN: Pairs = (("weight", "weight"), ("bias", "bias"))
_BLOCK: Pairs = (
    ("depthwise.", "depth_conv."),
    ("project.", "point_conv."),
    ("expand.", "inverted_conv."),
    ("dense.", "spatial_conv."),
    ("conv1.", "conv1."),
    ("conv2.", "conv2."),
)
_ATTENTION: Pairs = (
    ("qkv.", "qkv.conv."),
    ("aggregate.{s}.depthwise.", "aggreg.{s}.0."),
    ("aggregate.{s}.pointwise.", "aggreg.{s}.1."),
    ("project.", "proj."),
)


def _stage(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{ours}.downsample.", f"{theirs}.0.main.", _BLOCK),
        Rule(
            f"{ours}.blocks.{{j}}.attention.", f"{theirs}.{{j+1}}.context_module.main.", _ATTENTION
        ),
        Rule(f"{ours}.blocks.{{j}}.mbconv.", f"{theirs}.{{j+1}}.local_module.main.", _BLOCK),
        Rule(f"{ours}.blocks.{{j}}.", f"{theirs}.{{j+1}}.main.", _BLOCK),
    )


_ORIGINAL_HEAD = (
    Rule("head.expand.", "head.op_list.0.", _LAYER),
    Rule("head.hidden.", "head.op_list.2.linear.", _PLAIN),
    Rule("head.norm.", "head.op_list.2.norm.", _PLAIN),
    Rule("head.classifier.", "head.op_list.3.linear.", _PLAIN),
)
_TIMM = (
    Rule("stem.downsample.", "stem.in_conv.", _LAYER),
    Rule("stem.blocks.{i}.", "stem.res{i}.main.", _BLOCK),
    *_stage("stage{n+1}", "stages.{n}.blocks"),
    Rule("head.expand.", "head.in_conv.", _LAYER),
    Rule("head.hidden.", "head.classifier.0.", _PLAIN),
    Rule("head.norm.", "head.classifier.1.", _PLAIN),
    Rule("head.classifier.", "head.classifier.4.", _PLAIN),
)
RULES: dict[tuple[str, str], tuple[Rule, ...]] = {
    ("original", "B"): (
        Rule("stem.downsample.", "backbone.input_stem.op_list.0.", _LAYER),
        Rule("stem.blocks.{i}.", "backbone.input_stem.op_list.{i+1}.main.", _BLOCK),
        *_stage("stage{n+1}", "backbone.stages.{n}.op_list"),
        *_ORIGINAL_HEAD,
    ),
    ("original", "L"): (
        Rule("stem.downsample.", "backbone.stages.0.op_list.0.", _LAYER),
        Rule("stem.blocks.{i}.", "backbone.stages.0.op_list.{i+1}.main.", _BLOCK),
        *_stage("stage{n}", "backbone.stages.{n}.op_list"),
        *_ORIGINAL_HEAD,
    ),
    ("timm", "B"): _TIMM,
    ("timm", "L"): _TIMM,
}


def to_ours(key: str, source: str, series: str) -> str | None:
    """Returns our name for a tensor of another project, or None if the network has no such place.

    Args:
        key: the tensor's name there.
        source: "original" or "timm".
        series: "B" or "L".
    """
    for rule in RULES[source, series]:
        head = _rewrite(key, rule.theirs, rule.ours)
        if head is not None:
            return _inside(*head, tuple((theirs, ours) for ours, theirs in rule.inside))
    return None


def from_ours(name: str, source: str, series: str) -> str | None:
    """Returns another project's name for a tensor of ours, or None if it has no such place."""
    for rule in RULES[source, series]:
        head = _rewrite(name, rule.ours, rule.theirs)
        if head is not None:
            return _inside(*head, rule.inside)
    return None


def _inside(prefix: str, rest: str, pairs: Pairs) -> str | None:
    for before, after in pairs:
        found = _rewrite(rest, before, after)
        if found is not None:
            return prefix + found[0] + found[1]
    return None


def _rewrite(text: str, before: str, after: str) -> tuple[str, str] | None:
    """Returns (`after` with the integers that `before` finds at the start of `text`, the rest)."""
    pattern, shifts = _compile(before)
    match = pattern.match(text)
    if match is None:
        return None
    values = {name: int(match[name]) - shift for name, shift in shifts.items()}
    if min(values.values(), default=0) < 0:
        return None
    filled = _PLACEHOLDER.sub(lambda hit: str(values[hit["name"]] + int(hit["shift"] or 0)), after)
    return filled, text[match.end() :]


_PLACEHOLDER = re.compile(r"\{(?P<name>[a-z])(?:\+(?P<shift>\d))?\}")


@cache
def _compile(prefix: str) -> tuple[re.Pattern[str], dict[str, int]]:
    pattern, shifts, end = "", {}, 0
    for hit in _PLACEHOLDER.finditer(prefix):
        pattern += re.escape(prefix[end : hit.start()]) + f"(?P<{hit['name']}>0|[1-9][0-9]{{0,3}})"
        shifts[hit["name"]] = int(hit["shift"] or 0)
        end = hit.end()
    return re.compile(pattern + re.escape(prefix[end:])), shifts
