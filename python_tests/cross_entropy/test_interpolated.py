"""cross_entropy of logits that the kernel interpolates, against torch's interpolation and loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import segunc_ops
import segunc_ops.functional as sf
from python_tests.comparison import assert_close, assert_same_bits, assert_same_bits_on_every_run
from python_tests.cross_entropy import cases
from python_tests.cross_entropy.cases import compare
from python_tests.interpolation import interpolation_matrix
from python_tests.support import IGNORED, LAYOUTS, LOGITS_DTYPES
from segunc_ops import reference

NAN = float("nan")


def batch(
    dtype: torch.dtype = torch.float32,
    source: tuple[int, ...] = (3, 4),
    size: tuple[int, ...] = (7, 10),
) -> tuple[Tensor, Tensor, Tensor]:
    return cases.batch(dtype, size, source)


def loss_of(x: Tensor, target: Tensor, u: Tensor | None = None, **options: object) -> Tensor:
    options = {"upsample": "bilinear" if x.dim() == 4 else "trilinear"} | options
    return sf.cross_entropy(x, target, pixel_weight=u, ignore_index=IGNORED, **options)


def torch_loss(x: Tensor, target: Tensor, u: Tensor, align_corners: bool = False) -> Tensor:
    mode = "bilinear" if x.dim() == 4 else "trilinear"
    large = F.interpolate(x, target.shape[1:], mode=mode, align_corners=align_corners)
    return (F.cross_entropy(large, target, ignore_index=IGNORED, reduction="none") * u).mean()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("first", range(0, 400, 100))
def test_random_calls(first):
    """400 calls, every argument, type, layout and size drawn independently."""
    for seed in range(first, first + 100):
        case = cases.random_upsampled_case(seed)
        compare(case, cases.run(case))


@pytest.mark.usefixtures("one_thread")
def test_no_less_accurate_than_torch_in_the_same_type():
    """Where torch interpolates and computes in the logits' type too, its error is the bar."""
    for seed in range(1000, 1060):
        case = cases.random_upsampled_case(seed)
        if case.input.dtype != torch.float64:  # torch's float64 is the truth itself
            compare(case, cases.run(case), peer=cases.expected(case, case.input.dtype))


def test_reference_is_torch_in_float64():
    with segunc_ops.backend("reference"):
        for seed in range(2000, 2050):
            case = cases.random_upsampled_case(seed)
            compare(case, cases.run(case))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_torch_in_float64(dtype, tolerance, align_corners):
    """Coordinates in float64 for both: what single precision makes of them is in the tolerance."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(25):
        sizes = [int(torch.randint(1, n, (), generator=generator)) for n in (98, 132, 98, 132)]
        h, w, high, wide = sizes
        x = torch.randn(2, 5, h, w).to(dtype).requires_grad_()
        target = torch.randint(0, 5, (2, high, wide))
        u = torch.rand(target.shape).to(dtype).requires_grad_()
        loss = loss_of(x, target, u, reduction="mean_all", align_corners=align_corners)
        exact = [t.detach().double().requires_grad_() for t in (x, u)]
        truth = torch_loss(exact[0], target, exact[1], align_corners)
        found = [loss.detach(), *torch.autograd.grad(loss, (x, u))]
        wanted = [truth.detach(), *torch.autograd.grad(truth, exact)]
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def test_coordinates_are_torch_s():
    """The matrices that calls are compared with, and the identity where sizes are the same."""
    for source, size in ((1, 1), (1, 9), (9, 1), (5, 5), (2, 131), (131, 2), (97, 131), (64, 256)):
        for align_corners in (False, True):
            rows = torch.eye(source, dtype=torch.float64).view(source, 1, 1, source)
            wanted = F.interpolate(rows, (1, size), mode="bilinear", align_corners=align_corners)
            matrix = interpolation_matrix(source, size, align_corners, torch.float64)
            torch.testing.assert_close(wanted.view(source, size).T, matrix, rtol=0, atol=1e-13)
    x, target, u = batch(size=(3, 4))
    for align_corners in (False, True):
        plain = sf.cross_entropy(x, target, pixel_weight=u, ignore_index=IGNORED)
        same = loss_of(x, target, u, align_corners=align_corners)
        torch.testing.assert_close(same, plain)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("source", "size"), [((2, 3), (5, 4)), ((4, 3), (2, 2)), ((2, 1, 2), (3, 2, 3))]
)
def test_gradcheck(source, size, align_corners):
    x, target, u = batch(torch.float64, source, size)
    for options in ({"reduction": "none"}, {"label_smoothing": 0.2, "weight": torch.rand(3)}):
        options["align_corners"] = align_corners
        assert torch.autograd.gradcheck(lambda x, u, o=options: loss_of(x, target, u, **o), (x, u))


@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_support_matrix(layout, dtype):
    """Every type in every layout, past one strip and one band, and its strides kept."""
    for source, size in (((19, 33), (40, 70)), ((3, 9, 11), (5, 12, 20))):
        x = torch.randn(2, 35, *source, dtype=torch.float64).to(dtype)
        x = LAYOUTS[layout].make(x).detach().requires_grad_()
        target = torch.randint(0, 35, (2, *size))
        target[torch.rand(target.shape) < 0.2] = IGNORED
        case = cases.Case(
            input=x,
            target=target,
            weight=torch.rand(35) + 0.5,
            pixel_weight=torch.rand(target.shape).requires_grad_(),
            ignore_index=IGNORED,
            reduction="mean",
            label_smoothing=0.1,
            upstream=torch.tensor(0.7, dtype=dtype),
            name=f"{layout} {dtype} {source} to {size}",
            upsample="bilinear" if len(size) == 2 else "trilinear",
        )
        outcome = cases.run(case)
        compare(case, outcome)
        assert outcome.grad_input is not None
        assert outcome.grad_input.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("ratio", [1, 2, 3, 0.5])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_nan_reaches_what_has_a_share_of_it(dtype, layout, ratio):
    """Forward the pixels that blend it; backward the logits that these blend, and no others."""
    x, _, _ = batch(dtype, (14, 20))
    with torch.no_grad():
        x[0, 1, 6, 9] = NAN
    size = (int(14 * ratio), int(20 * ratio))
    target = torch.randint(0, 3, (2, *size))
    x = LAYOUTS[layout].make(x).detach().requires_grad_()
    loss = loss_of(x, target, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), x)
    rows, columns = (
        interpolation_matrix(n, m, False, torch.float32) != 0
        for n, m in zip(x.shape[2:], size, strict=True)
    )
    touched = rows[:, 6, None] & columns[:, 9]
    assert torch.equal(loss.isnan()[0], touched)
    assert not loss.isnan()[1].any()
    reached = (rows.double().T @ touched.double() @ columns.double()) > 0
    assert torch.equal(grad.isnan()[0], reached.expand(3, -1, -1))
    assert not grad.isnan()[1].any()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", LOGITS_DTYPES)
def test_ignored_pixels_send_nothing(dtype, reduction):
    """Logits that only ignored pixels blend may be anything, and get no gradient."""
    x, _, u = (t.detach() for t in batch(dtype, (9, 21), (36, 84)))
    target = torch.randint(0, 3, (2, 36, 84))
    target[:, :, 40:] = IGNORED
    target[0, :18] = IGNORED
    seen = torch.zeros(2, 9, 21, dtype=torch.bool)
    rows, columns = (interpolation_matrix(n, 4 * n, False, torch.float32) for n in (9, 21))
    for image in range(2):
        seen[image] = (rows.T @ (target[image] != IGNORED).double() @ columns) > 0
    results = []
    for poison in (0.0, NAN, float("inf")):
        logits = x.masked_fill(~seen.unsqueeze(1), poison).requires_grad_()
        weights = u.masked_fill(target == IGNORED, poison).requires_grad_()
        loss = loss_of(logits, target, weights, reduction=reduction, label_smoothing=0.1)
        grads = torch.autograd.grad(loss, (logits, weights), torch.ones_like(loss))
        assert not grads[0].movedim(1, -1)[~seen].any()
        assert not grads[1][target == IGNORED].any()
        results.append((loss.detach(), *grads))
    for poisoned in results[1:]:
        for name, a, b in zip(("loss", "input", "weight"), poisoned, results[0], strict=True):
            assert_same_bits(a, b, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_same_bits_for_any_number_of_threads(dtype):
    for source, size in (((40, 33), (131, 90)), ((5, 9, 12), (8, 30, 41))):
        x, target, u = batch(dtype, source, size)

        def step(x: Tensor = x, target: Tensor = target, u: Tensor = u) -> list[Tensor]:
            loss = loss_of(x, target, u, label_smoothing=0.1)
            results = [loss.detach(), *torch.autograd.grad(loss, (x, u))]
            assert all(r.isfinite().all() for r in results)
            return results

        assert_same_bits_on_every_run(step, name=f"{source} to {size}", runs=12)


def test_autocast_computes_in_float32():
    x, target, u = batch(torch.bfloat16)
    exact = x.detach().double().requires_grad_()
    truth = loss_of(exact, target, u.detach().double())
    for backend in ("native", "reference"):
        with torch.autocast("cpu", torch.bfloat16), segunc_ops.backend(backend):
            loss = loss_of(x, target, u)
        assert loss.dtype == torch.float32
        assert_close(loss, truth.detach(), name="loss", scale=10.0)
        grads = [torch.autograd.grad(value, leaf)[0] for value, leaf in ((loss, x), (truth, exact))]
        if backend == "native":  # the reference rounds the gradients of the large logits too
            assert_close(*grads, name="gradient", roundings=2)
            truth = loss_of(exact, target, u.detach().double())
    assert loss_of(x, target, u).dtype == torch.bfloat16


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_graphs_are_those_of_the_plain_loss(reduction):
    """Kept, rebuilt by checkpointing, and never differentiated twice in silence."""
    for dtype in (torch.float32, torch.float16):
        x, target, u = batch(dtype)

        def loss(
            x: Tensor, u: Tensor, target: Tensor = target, reduction: str = reduction
        ) -> Tensor:
            return 2.5 * loss_of(x * 2, target, u, reduction=reduction).sum()

        kept = loss(x, u)
        plain = torch.autograd.grad(kept, (x, u), retain_graph=True)
        again = torch.autograd.grad(kept, (x, u))
        rebuilt = torch.autograd.grad(checkpoint(loss, x, u, use_reentrant=False), (x, u))
        for gradients in (again, rebuilt):
            for name, a, b in zip(("input", "pixel_weight"), gradients, plain, strict=True):
                assert_same_bits(a, b, name=name)
        for leaf in (x, u):
            (gradient,) = torch.autograd.grad(loss(x, u), leaf, create_graph=True)
            with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
                gradient.sum().backward()
    found = torch.func.grad(loss, argnums=(0, 1))(x.detach(), u.detach())
    for name, a, b in zip(("input", "pixel_weight"), found, plain, strict=True):
        assert_close(a, b.double(), name=name, roundings=2, bias=False)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_traces_one_graph(reduction):
    torch.compiler.reset()
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=True, backend="aot_eager")
    for dtype in (torch.float32, torch.float16):
        for source, size in (((3, 4), (7, 10)), ((5, 3), (6, 11))):
            x, target, u = batch(dtype, source, size)
            found = compiled(x, target, u, reduction=reduction)
            wanted = loss_of(x, target, u, reduction=reduction)
            assert_same_bits(found, wanted, name="loss")
            upstream = torch.full_like(found, 2.5)
            gradients = torch.autograd.grad(found, (x, u), upstream)
            for a, b in zip(gradients, torch.autograd.grad(wanted, (x, u), upstream), strict=True):
                assert_same_bits(a, b, name=f"gradient {dtype}")


def test_export_never_loses_the_gradient():
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classify = nn.Conv2d(4, 3, 1)

        def forward(self, features: Tensor, target: Tensor) -> Tensor:
            return loss_of(self.classify(features), target)

    model, features, target = Head(), torch.randn(2, 4, 4, 5), batch()[1]
    program = torch.export.export(model, (features, target)).module()
    torch.testing.assert_close(program(features, target), model(features, target))
    with pytest.raises(RuntimeError, match="segunc_ops::cross_entropy_forward is not different"):
        program(features, target).backward()


def test_reference_has_second_derivatives():
    x, target, u = batch(torch.float64, (2, 2), (3, 3))
    with segunc_ops.backend("reference"):
        assert torch.autograd.gradgradcheck(lambda x, u: loss_of(x, target, u), (x, u))
    large = reference.interpolate(x.half(), (3, 3), "bilinear", False)
    assert large.dtype == torch.float32


def test_segformer():
    """On the low-resolution logits of transformers' SegFormer: its own loss of them, which it
    enlarges in memory, and the gradients of all its parameters."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=7,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        decoder_hidden_size=16,
        semantic_loss_ignore_index=IGNORED,
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    images = torch.randn(2, 3, 64, 96)
    labels = torch.randint(0, 7, (2, 64, 96))
    labels[torch.rand(labels.shape) < 0.1] = IGNORED
    output = model(pixel_values=images, labels=labels)
    parameters = [*model.parameters()]
    wanted = torch.autograd.grad(output.loss, parameters)
    logits = model(pixel_values=images).logits
    assert logits.shape[2:] == (16, 24)
    loss = sf.cross_entropy(logits, labels, ignore_index=IGNORED, upsample="bilinear")
    torch.testing.assert_close(loss, output.loss, rtol=1e-5, atol=0)
    found = torch.autograd.grad(loss, parameters)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()) + 1e-9)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(12, 20), (7, 3), (3, 40)])
def test_a_class_without_mass_changes_nothing(size, align_corners):
    """Logits of -inf stay that where an infinity has a share of 0, too, as at the borders."""
    logits = torch.randn(1, 4, 3, 5)
    logits[:, 3] = -torch.inf
    target = torch.randint(0, 3, (1, *size))
    losses = (loss_of(x, target, align_corners=align_corners) for x in (logits, logits[:, :3]))
    torch.testing.assert_close(*losses)
