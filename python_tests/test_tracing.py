"""Operators as torch sees them: schemas, fakes, tracing and export, across families."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import segunc_ops.functional as sf
from python_tests.blocks import cases as blocks
from python_tests.comparison import assert_same_bits
from python_tests.components import cases as components
from python_tests.counts import cases as counts
from python_tests.cross_entropy import cases as cross_entropy
from python_tests.dice import cases as dice
from python_tests.expected_cross_entropy import cases as expected_cross_entropy
from python_tests.label_uncertainty import cases as label_uncertainty
from python_tests.statistics import cases as statistics
from segunc_ops import _torch


def operator_calls() -> dict[str, list[tuple[object, ...]]]:
    """Arguments for every operator."""
    families = (
        *(cross_entropy, dice, expected_cross_entropy, label_uncertainty),
        *(statistics, blocks, components, counts),
    )
    return {name: calls for family in families for name, calls in family.operator_calls().items()}


# Of torch's own comparison: that of 2.14 reads the gradients of copies.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", [*operator_calls()])
def test_opcheck(name):
    """Schemas, fakes and tracing, for static and dynamic shapes."""
    operator = getattr(torch.ops.segunc_ops, name).default
    for arguments in operator_calls()[name]:
        torch.library.opcheck(operator, arguments)


def test_every_operator_is_checked():
    schemas = torch._C._jit_get_all_schemas()
    names = {s.name.split("::")[1] for s in schemas if s.name.startswith("segunc_ops::")}
    takes_no_tensor = {"cpu_isa", "cpu_isas", "cuda_targets", "cuda_versions", "check"}
    assert names - takes_no_tensor == set(operator_calls())


class Evaluate(nn.Module):
    """What needs no gradient, as a model that evaluates itself would call them."""

    def forward(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        size = labels.shape[1:]
        maps = sf.predictive_statistics([logits, logits.sin()], size=size, return_mean=True)
        mean = torch.empty_like(maps.mean)
        squares, entropy = torch.empty_like(mean), torch.empty_like(maps.entropy)
        sf.accumulate_statistics(mean, squares, entropy, logits, 1)
        counts = sf.empty_counts(3)
        sf.accumulate_counts(counts, logits, labels, maps.entropy, size=size)
        # As many blocks as pixels: a graph of one block is another than that of several.
        blocks = sf.block_uncertainty(logits, block_size=1, size=size)
        return (*maps, mean, entropy, *counts, blocks)


def test_compile_traces_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(Evaluate(), fullgraph=True, dynamic=True, backend="aot_eager")
    for source, size in (((3, 4), (7, 10)), ((5, 3), (6, 11)), ((9, 8), (4, 5))):
        logits, labels = torch.randn(2, 3, *source), torch.randint(0, 3, (2, *size))
        for a, b in zip(compiled(logits, labels), Evaluate()(logits, labels), strict=True):
            assert_same_bits(a, b, name=f"{source} to {size}")


@pytest.mark.parametrize("strict", [False, True])
def test_export_for_any_size(strict):
    source, size = ([torch.export.Dim(f"{k}{i}", min=2) for i in range(2)] for k in "xy")
    arguments = torch.randn(2, 3, 6, 5), torch.randint(0, 3, (2, 11, 13))
    program = torch.export.export(
        Evaluate(),
        arguments,
        dynamic_shapes=({2: source[0], 3: source[1]}, {1: size[0], 2: size[1]}),
        strict=strict,
    ).module()
    for logits, labels in (arguments, (torch.randn(2, 3, 9, 8), torch.randint(0, 3, (2, 4, 5)))):
        for a, b in zip(program(logits, labels), Evaluate()(logits, labels), strict=True):
            assert_same_bits(a, b, name=f"{tuple(logits.shape)}")


def test_what_is_exported_is_known_by_a_flag():
    """Beside torch 2.10 and 2.11 the public function is no help: see `_torch.is_exporting`."""
    asked = []

    class Ask(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append((_torch.is_exporting(), torch.compiler.is_exporting()))
            return x + 1

    Ask()(torch.ones(2))
    assert asked == [(False, False)]
    torch.export.export(Ask(), (torch.ones(2),), strict=False)
    assert set(asked[1:]) == {(True, True)}
