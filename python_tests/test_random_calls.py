"""Random calls of every public function: each returns, or says which argument is wrong."""

import inspect
import re
from typing import get_args

import numpy as np
import pytest
import torch

from segunc_ops import functional
from segunc_ops._overlap import Absent
from segunc_ops._types import Reduction, Upsample
from segunc_ops._variations import Curve, Distribution, Margins
from segunc_ops.functional import empty_counts

CALLS = 10_000
FUNCTIONS = [name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))]
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WORDS = {
    "absent": Absent,
    "curve": Curve,
    "distribution": Distribution,
    "margin_on": Margins,
    "reduction": Reduction,
    "upsample": Upsample,
}
INDICES = (torch.int64, torch.int32, torch.int16, torch.uint8)


class Situation:
    """Shapes that go together, and arguments of them by name."""

    def __init__(self, random):
        self.random = random
        self.images = self.pick([0, 1, 1, 2, 3])
        self.classes = self.pick([1, 2, 2, 3, 5, 19])
        self.spatial = [self.pick([0, 1, 2, 3, 4, 7]) for _ in range(self.pick([0, 1, 2, 2, 2, 3]))]
        self.dtype = self.pick(FLOATS)

    def pick(self, values):
        return values[self.random.integers(len(values))]

    def chance(self, share):
        return self.random.random() < share

    def floats(self, *shape, dtype=None):
        values = torch.from_numpy(self.random.normal(0, 3, shape)).to(dtype or self.dtype)
        if values.numel() and self.chance(0.1):
            special = self.pick([torch.nan, torch.inf, -torch.inf, 1e30, -0.0])
            values.view(-1)[self.random.integers(values.numel())] = special
        if self.chance(0.3) and values.dim() > 1:
            values = values.transpose(0, -1).contiguous().transpose(0, -1)
        return values.requires_grad_() if self.chance(0.5) else values

    def map(self):
        return self.floats(self.images, *self.spatial, dtype=self.of_accumulation()).abs()

    def of_accumulation(self):
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def indices(self, classes=None, channels=()):
        shape = (self.images, *channels, *self.spatial)
        values = torch.from_numpy(self.random.integers(0, classes or self.classes, shape))
        if values.numel() and self.chance(0.1):
            values.view(-1)[self.random.integers(values.numel())] = self.pick([-100, 255, 1000, -1])
        return values.to(self.pick(INDICES))

    def sizes(self):
        return tuple(self.pick([s, 2 * s, 1, 5, s]) for s in self.spatial)

    def logits(self):
        return self.floats(self.images, self.classes, *self.spatial)

    def of_classes(self):
        return self.floats(self.classes).abs() + 0.1

    def argument(self, name, function):
        """A value that a call may well have there."""
        if name in ("input", "mean", "logits", "log_variance", "variance", "scale"):
            if name == "scale" and function == "ldam_cross_entropy":
                return self.pick([1.0, 20.0])
            return self.logits()
        if name == "samples":
            return [self.logits() for _ in range(self.pick([0, 1, 2, 3]))]
        if name == "squared_deviations":
            return self.logits().detach().abs()
        if name in ("entropy_sum", "uncertainty", "pixel_weight", "values"):
            return self.map()
        if name in ("target", "labels"):
            if function in ("dice_bce", "label_uncertainty_bce", "bootstrapped_bce"):
                return self.indices(2, (self.classes,))
            return self.indices()
        if name == "bootstrap" or name == "exact":
            return torch.from_numpy(self.random.random(self.images) < 0.5)
        if name == "mask":
            return self.indices(2, ()).bool()
        if name == "outcome":
            return self.indices(3).to(torch.uint8)
        if name == "thresholds":
            return torch.linspace(0, 1, 11, dtype=torch.float64)
        if name == "counts":
            if function == "accumulate_counts":
                return empty_counts(self.classes)
            if function == "accumulate_patch_counts":
                return torch.zeros(11, 5, dtype=torch.int64)
            return self.of_classes()
        if name in ("weight", "pos_weight"):
            return self.of_classes()
        if name in ("size", "block_size", "stride"):
            return self.pick([self.sizes(), self.pick([1, 2, 3])])
        if name in ("num_classes", "count", "num_draws", "num_bins", "window"):
            return self.pick([self.classes, 1, 2, 7])
        if name == "connectivity":
            return self.pick([4, 8, 6, 26])
        if name in ("ignore_index", "background"):
            return self.pick([-100, 255, 0, 1])
        if name == "seed":
            return self.pick([0, 2**40])
        if name in WORDS:
            return self.pick(get_args(WORDS[name]))
        if name == "tables":
            return self.pick([("confusion",), ("scores", "histogram")])
        if name == "device":
            return "cpu"
        if name == "group":
            return None
        raise AssertionError(f"{function} has an argument {name!r} that these calls do not know")

    def odd(self):
        """A value that few arguments take."""
        plain = [None, True, False, 0, 1, -1, 2**63, 0.5, -0.5, float("nan"), float("inf")]
        others = ["", "mean", (), (1,), (2, 3), [4, 5, 6], (0, 0), (-1, 2), {}, b"x", 1j, object()]
        arrays = [np.float32(2), np.int64(3), np.zeros((2, 3))]
        tensors = [
            torch.tensor(1.0),
            torch.tensor(2),
            torch.empty(0),
            torch.zeros(2, 3),
            torch.zeros(1, 2, 3, 4, dtype=torch.int64),
            torch.zeros(2, 2).bool(),
            torch.zeros(2, 3, dtype=torch.complex64),
            torch.zeros(2, 3, 4, 4, device="meta"),
            torch.zeros(3, 3).to_sparse(),
        ]
        fitting = [self.logits(), self.indices(), self.map(), [self.logits()]]
        return self.pick([*plain, *others, *arrays, *tensors, *fitting])

    def arguments(self, function):
        signature = inspect.signature(getattr(functional, function))
        values = {}
        for name, parameter in signature.parameters.items():
            default = parameter.default
            if default is not parameter.empty and self.chance(0.6):
                continue
            if isinstance(default, bool):
                values[name] = self.chance(0.5)
            elif isinstance(default, float) and name != "scale":
                values[name] = self.pick([default, 0.0, 0.3, 1.0, 7.5])
            elif name in ("beta", "bound", "threshold"):
                values[name] = self.pick([0.5, 0.99, 2.0])
            else:
                values[name] = self.argument(name, function)
            if self.chance(0.08):
                values[name] = self.odd()
        return values


def tensors_of(result):
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, tuple):
        return [each for each in result if isinstance(each, torch.Tensor)]
    return []


def outcome(function, arguments):
    """What is wrong by the function's own words, or None; other errors are raised."""
    try:
        result = function(**arguments)
        for tensor in tensors_of(result):
            if tensor.requires_grad:
                tensor.sum().backward()
                break
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        return str(error)
    return None


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_random_calls_return_or_name_the_argument(name):
    function = getattr(functional, name)
    parameters = set(inspect.signature(function).parameters)
    random = np.random.default_rng(sum(map(ord, name)))
    returned = 0
    for number in range(CALLS):
        arguments = Situation(random).arguments(name)
        try:
            message = outcome(function, arguments)
        except Exception as error:
            raise AssertionError(f"call {number}: {arguments}") from error
        if message is None:
            returned += 1
            continue
        named = re.match(r"([a-z_]+)(\[\d+\])?(\.\w+)?: ", message)
        assert named, (number, arguments, message)
        assert named[1] in parameters, (number, arguments, message)
    assert returned > CALLS / 50
