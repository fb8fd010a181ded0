"""Mutants that change no result, and why: nobody can notice them.

They are known by their file and by the line that the change leads to, so they follow it wherever it
moves, and have to be judged anew when it changes.
"""

from __future__ import annotations

from .sources import Mutant

_MORE_MEMORY = "a byte that nobody uses"
_ANOTHER_KERNEL = "another kernel takes these sizes, which is as right"
_SLOWER = "the general way instead of the fast one"
_NO_CLASS = "of a pixel without a class, whose results do not depend on it"
_SMOOTHS_BY_ZERO = "labels are smoothed, by zero"
_NO_PIXEL = "what a thread without a pixel reads is there, and nobody uses it"

# By file: the reasons, each with changed lines, white space aside.
EQUIVALENT: dict[str, dict[str, tuple[str, ...]]] = {
    "common/device/reduction.cu": {
        _SLOWER: (
            "const int64_t vectors = reinterpret_cast<uintptr_t>(target) / 16 == 0 ? "
            "p.count / kVector : 0;",
        ),
        _MORE_MEMORY: (
            "launch(finish_kernel<Result>, 1, kFinishThreads, 1, stream, partial, count, "
            "normalizer, result);",
            "params.partials, kSumThreads, 1, stream, params);",
        ),
    },
    "cross_entropy/cuda/stored.cu": {
        "images stay apart, which takes more blocks": (
            "if (is_one_image(p.map) && (!p.grad_input && is_one_image(p.grad_map))) {",
        ),
        "one of the buckets is always found": ("int width = 1;",),
        "backends give both maps the same layout": (
            "const bool same_layout = p.grad_input || p.grad_map.layout == map.layout;",
        ),
        _ANOTHER_KERNEL: (
            "const bool same_layout = !p.grad_input && p.grad_map.layout == map.layout;",
            "const bool same_layout = !p.grad_input || p.grad_map.layout != map.layout;",
            "map.pixels > kMinTiledPixels && has_short_strides(map) &&",
            "(!p.grad_input && has_short_strides(p.grad_map));",
            "if (tiled && map.layout == Layout::planar && map.classes < kMaxClassesOfThread) {",
            "if (tiled && map.classes < kMaxTileClasses) {",
        ),
        "the strided kernel has no bucket": ("Strategy::strided, 1};",),
        _NO_CLASS: (
            "? A(1)",
            "label[0] < 0 ? A(1) : to_accumulate(classes[label[0] * shape.class_pitch]) - "
            "maximum[0];",
            "A maximum = 1, pixel_weight = 1, upstream = 1;",
            "A maximum = 0, pixel_weight = 0, upstream = 1;",
            "A maximum = 0, pixel_weight = 1, upstream = 0;",
            ": A(1);",
        ),
        _SMOOTHS_BY_ZERO: (
            "const Constants<A> constants(p, Variant::kSmooths ? work.shares : "
            "TargetShares{1, 1});",
            "static constexpr bool kSmooths = true;",
            "if (p.label_smoothing >= 0) {",
            "run(PlanarVariant<Spaced, K, kLeast, true>());",
            "run(PlanarVariant<Adjacent, K, kLeast, true>());",
            "run(GeneralStaged<K, kLeast, true>());",
        ),
        _SLOWER: (
            "(!p.grad_input && fits_vectors<T, V>(p.grad_input, p.grad_map)) &&",
            "(p.upstream_is_scalar && factors_fit(p.upstream)) && factors_fit(p.loss) &&",
            "(!p.grad_input && vectors_are_aligned(p.grad_input, p.grad_map, sizeof(T)));",
        ),
        "fewer classes are known to be there, and more are asked for": (
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, SmoothedBuckets()) - 1;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, SmoothedBuckets()) ;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, PlanarBuckets()) - 1;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, PlanarBuckets()) ;",
        ),
        "the general kernel computes the same once more": (
            "if (aligned && p.label_smoothing == 0 && (run_exact(Planar()) && "
            "run_exact(ChannelsLast()))) {",
        ),
        "each strategy says itself whether it has a kernel": ("bool done = true;",),
        _MORE_MEMORY: (
            "Policy::kPlanarThreads, 1, stream, p, work);",
            "launch(cross_entropy_strided_kernel<T>, work.blocks, Policy::kStridedThreads, 1, "
            "stream, p, work,",
            "return {work.blocks, 1, [work](const CrossEntropyParams& unmerged, Stream stream) {",
        ),
    },
    "scale/cuda/scale.cu": {
        "a thread more enters, and none of its vectors is one": (
            "for (int64_t i = first; i <= vectors; i += kBatch * threads) {",
        ),
        _MORE_MEMORY: (
            "launch(scale_vectors_kernel<T, N>, blocks, kThreads, 1, stream, "
            "static_cast<T*>(p.data), p.factor,",
        ),
        "longer vectors move as words of 16 bytes, too; slower, as `make cuda` would notice": (
            "launch_scale_vectors<T, 16 * sizeof(T)>(p, stream);",
        ),
    },
    "statistics/cuda/stream.cu": {
        _NO_PIXEL: ("rematerialized(pixels.map.class_stride), inside ? owner.owned : 1, value);",),
    },
}

_REASONS = {
    (file, line): reason
    for file, reasons in EQUIVALENT.items()
    for reason, lines in reasons.items()
    for line in lines
}


def reason_of(mutant: Mutant) -> str | None:
    return _REASONS.get((mutant.file, mutant.mutated))
