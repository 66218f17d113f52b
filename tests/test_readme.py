"""What the README says of the operators holds: signatures, and what they are equivalent to."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import evit_kernels

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
# Blocks of code that show a signature, then a comment, then what it is equivalent to.
EQUIVALENTS = {
    match.group(1): (match.group(2), match.group(3))
    for match in re.finditer(
        r"```python\n(\w+)\((.*?)\)\n\n# Equivalent to.*?:\n(.*?)```", README, re.DOTALL
    )
}
OPERATORS = [
    "dense_conv3d",
    "depthwise_conv3d",
    "relu_linear_attention",
    "relu_linear_attention_qkv",
    "pointwise_conv3d",
    "pointwise_depthwise_conv3d",
    "batch_norm_activation",
]


def _arguments(name: str) -> dict[str, Any]:
    heads = (2, 3, 10, 16)
    clip, channels = torch.randn(2, 8, 3, 5, 7), torch.rand(8) + 0.5
    return {
        "dense_conv3d": {
            "input": clip,
            "weight": torch.randn(6, 8, 3, 3, 3),
            "bias": torch.randn(6),
            "stride": (1, 2, 2),
            "padding": 1,
            "activation": "hardswish",
        },
        "depthwise_conv3d": {
            "input": clip,
            "weight": torch.randn(8, 1, 3, 3, 3),
            "bias": torch.randn(8),
            "stride": (1, 2, 2),
            "padding": 1,
            "dilation": 1,
            "activation": "hardswish",
        },
        "relu_linear_attention": {
            **{part: torch.randn(heads) for part in ("q", "k", "v")},
            "eps": 1e-15,
        },
        "relu_linear_attention_qkv": {
            "qkv": torch.randn(2, 4 * 3 * 16, 2, 3, 5),
            "head_dim": 16,
            "eps": 1e-15,
        },
        "pointwise_conv3d": {
            "input": clip,
            "weight": torch.randn(12, 8, 1, 1, 1),
            "bias": torch.randn(12),
            "groups": 1,
            "residual": torch.randn(2, 12, 3, 5, 7),
            "activation": "hardswish",
        },
        "pointwise_depthwise_conv3d": {
            "input": clip,
            "pointwise_weight": torch.randn(12, 8, 1, 1, 1),
            "pointwise_bias": torch.randn(12),
            "weight": torch.randn(12, 1, 3, 3, 3),
            "bias": torch.randn(12),
            "stride": (1, 2, 2),
            "padding": 1,
            "dilation": 1,
            "temporal_padding": "causal",
            "pointwise_activation": "hardswish",
            "activation": "gelu",
            "project_weight": torch.randn(6, 12, 1, 1, 1),
            "project_bias": torch.randn(6),
            "residual": torch.randn(2, 6, 3, 3, 4),
        },
        "batch_norm_activation": {
            "input": clip,
            "weight": torch.randn(8),
            "bias": torch.randn(8),
            "running_mean": torch.randn(8),
            "running_var": channels,
            "training": False,
            "momentum": 0.1,
            "eps": 1e-5,
            "activation": "hardswish",
        },
    }[name]


def test_every_operator_is_shown() -> None:
    assert sorted(EQUIVALENTS) == sorted(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_signature(name: str) -> None:
    shown = ast.parse(f"def f({EQUIVALENTS[name][0]}): ...").body[0]
    assert isinstance(shown, ast.FunctionDef)
    signature = inspect.signature(getattr(evit_kernels, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    real = ast.parse(
        f"def f{signature.replace(parameters=bare, return_annotation=inspect._empty)}: ..."
    )
    assert ast.dump(shown.args) == ast.dump(real.body[0].args)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", OPERATORS)
def test_equivalent(name: str) -> None:
    arguments = _arguments(name)
    *statements, last = ast.parse(EQUIVALENTS[name][1]).body
    assert isinstance(last, ast.Expr)
    space = {"torch": torch, "F": F, **vars(evit_kernels), **arguments}
    exec(compile(ast.Module(statements, []), "README.md", "exec"), space)
    expected = eval(compile(ast.Expression(last.value), "README.md", "eval"), space)
    result = getattr(evit_kernels, name)(**arguments)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
