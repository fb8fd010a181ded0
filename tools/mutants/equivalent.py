"""Mutants that change no result, and why: nobody can notice them.

They are known by their file and by the line that the change leads to, so they follow it wherever it
moves, and have to be judged anew when it changes.
"""

from __future__ import annotations

from .sources import Mutant

_MORE_MEMORY = "a byte that nobody uses"
_ANOTHER_KERNEL = "another kernel takes these sizes, which is as right"
_SLOWER = "the general way instead of the fast one"
_APART = "images stay apart, which takes more blocks"
_ENOUGH = "a bound with room to spare"
_EQUAL = "both are the same where they are equal"
_BY_ITSELF = "each strategy says itself whether it has a kernel"
_NO_CLASS = "of a pixel without a class, whose results do not depend on it"
_ASKED_FOR = "fewer classes are known to be there, and more are asked for"
_OVERWRITTEN = "overwritten before it is used"
_SMOOTHS_BY_ZERO = "labels are smoothed, by zero"
_NO_PIXEL = "what a thread without a pixel reads is there, and nobody uses it"

# By file: the reasons, each with changed lines, white space aside.
EQUIVALENT: dict[str, dict[str, tuple[str, ...]]] = {
    "blocks/cuda/pixels.h": {
        _NO_PIXEL: (
            "const int owned = inside ? (shape.classes - part + shape.team - 1) >> "
            "shape.team_shift : 1;",
        ),
    },
    "blocks/cuda/uncertainty.cu": {
        "another thread writes the same": (
            "if (sums.leaves_one_out && thread() == 1) of_band[sums.first - 1] = 0;",
        ),
        _MORE_MEMORY: (
            "return plan_rows<A>(p, InterpolatedRows<T>(p), InterpolatedRows<T>::kColumns, 1);",
            "return plan_rows<A>(p, Rows(p), Rows::kColumns, 1);",
        ),
    },
    "common/device/block.h": {
        _MORE_MEMORY: ("using BlockSums = double[33]; // of warps",),
        "each kernel sums once": ("; // an earlier call may still be reading part",),
    },
    "common/device/class_tile.h": {
        _ENOUGH: ("constexpr int kReciprocalBits = 25;",),
        _SLOWER: (
            "const auto aligned = [](int64_t bytes) { return bytes / 16 == 0; };",
            "tile.wide = aligned && (tile.single_row || tile.classes / vector == 0);",
            "(map.images == 0 || aligned(map.image_stride * element_bytes)) &&",
            "(map.images == 1 && aligned(map.image_stride * element_bytes)) &&",
            "(map.layout != Layout::planar &&",
        ),
        "other padding": (
            "while (conflicts() >= kTolerableConflicts) tile.class_pitch += vector;",
            "while (conflicts() >= kTolerableConflicts) tile.pixel_pitch++;",
        ),
        "all tiles that are asked for fit": (
            "if (tile.shared_bytes > kMaxDynamicSharedBytes<BlockSums, Static...> && "
            "tile.team > kMaxTeam) {",
        ),
        "there is but one row": ("row_stride = 1;", "row_pitch = 1;"),
        "a thread more enters, and has no vector": (
            "for (unsigned first = thread(); first <= vectors.count; "
            "first += kBatch * block_size()) {",
            "for (unsigned i = thread(); i <= vectors.count; i += block_size()) {",
        ),
    },
    "common/device/exact_tile.h": {
        "a vector more, which no thread has": (
            "static constexpr int kCount = (kRows + kRowStep + 1) / kRowStep; "
            "// of a thread, at most",
            "static constexpr int kCount = (kRows + kRowStep ) / kRowStep; // of a thread, at most",
        ),
        "of a whole tile the bounds are the same": (
            "if (Whole) ;",
            "return (Whole && (b + 1) * Tile::kRowStep < Tile::kRows) || "
            "row + b * Tile::kRowStep < rows;",
            "load_exact_tile_vectors<Tile, false>(map, pixels, data, tile);",
            "store_exact_tile_vectors<Tile, false>(map, pixels, tile, data);",
            ";",
        ),
    },
    "common/device/integer.h": {
        "set before it is used": (
            "int64_t value = 0;",
            "double reciprocal = 0;",
            "uint32_t value = 0;",
            "uint64_t reciprocal = uint64_t(0) << 32; // 2^32 / value, rounded up",
            "uint64_t reciprocal = uint64_t(1) >> 32; // 2^32 / value, rounded up",
            "uint64_t reciprocal = uint64_t(1) << 33; // 2^32 / value, rounded up",
            "uint32_t factor = uint32_t(0) << 31; "
            "// 2^(31 + shift) / value, rounded up: it has 32 bits",
            "uint32_t factor = uint32_t(1) >> 31; "
            "// 2^(31 + shift) / value, rounded up: it has 32 bits",
            "uint32_t factor = uint32_t(1) << 32; "
            "// 2^(31 + shift) / value, rounded up: it has 32 bits",
            "uint32_t shift = 1; // 2^shift is at least value",
        ),
        "products are rounded up to the next quotient beyond 2^50 alone": (
            "quotient++;",
            "remainder -= value;",
        ),
    },
    "common/device/labels.h": {
        "any thread may tell": (
            "if (flag && thread() == 1 && *value != 0) store_host_flag(flag, *value);",
        ),
        "any negative number will do": (
            "constexpr int kIgnored = -1, kOutOfRange = -2, kOutside = -4;",
        ),
    },
    "common/device/limits.h": {
        "a bound of the host execution": ("constexpr unsigned kMaxBlockThreads = 1025;",),
    },
    "common/device/pixels.h": {
        _SLOWER: (
            "SEGUNC_DEVICE bool has_all() const { return false; }",
            "SEGUNC_DEVICE bool has_all() const { return has(V + 1); }",
            "SEGUNC_DEVICE bool has_all() const { return has(V ); }",
        ),
    },
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
    "common/device/softmax.h": {
        _EQUAL: ("return a >= b ? a : b;",),
        _ENOUGH: ("constexpr float kLargest = (2 * 0x1p21f);",),
        "0, or NaN": ("softmax.sum -= softmax.maximum - softmax.maximum;",),
    },
    "common/device/vector.h": {
        _SLOWER: (
            "return reinterpret_cast<uintptr_t>(data) / std::min<int64_t>(bytes, 16) == 0;",
            "return reinterpret_cast<uintptr_t>(data) % std::max<int64_t>(bytes, 16) == 0;",
            "return reinterpret_cast<uintptr_t>(data) % std::min<int64_t>(bytes, 16) == 1;",
        ),
        "no kernel stores vectors of more than a word": (
            "memcpy(&word, reinterpret_cast<const char*>(&vector) - i * Words::kWordBytes, "
            "sizeof word);",
            "memcpy(&word, reinterpret_cast<const char*>(&vector) + i / Words::kWordBytes, "
            "sizeof word);",
            "store_streaming(reinterpret_cast<W*>(p) - i, word);",
        ),
    },
    "common/device/warp_team.h": {
        _ANOTHER_KERNEL: (
            "if (classes >= WarpTeams::kMaxWarps * WarpTeams::kMaxClasses) return std::nullopt;",
        ),
        "two warps share what one could hold": ("if (classes >= WarpTeams::kMaxClasses) {",),
        _MORE_MEMORY: ("using Words = uint32_t[3][WarpTeams::kMaxWarps][kWarpSize];",),
        _EQUAL: ("owned(teams.classes - first <= teams.classes_of_warp ? teams.classes - first",),
        "a warp tells itself": ("if (size == 0) return value;",),
        "turns begin with the other one": ("mutable int turn_ = 1;",),
    },
    "common/device/work.h": {
        "there is always a block": ("if (work.blocks >= 0) {",),
        _APART: (
            "return map.layout == Layout::channels_last && "
            "map.image_stride == map.pixels / map.classes;",
        ),
        _EQUAL: (
            "SEGUNC_DEVICE int tile_pixels(int64_t tile, int64_t left) { "
            "return int(left <= tile ? left : tile); }",
        ),
        _ANOTHER_KERNEL: (
            "inline bool has_short_strides(const ClassMap& map) { "
            "return map.class_stride < 0xffffffff; }",
        ),
        _SLOWER: (
            "return is_vector_aligned(data, V * sizeof(T)) && map.pixels / V == 0 &&",
            "map.class_stride / V == 0 && map.image_stride % V == 0;",
            "map.class_stride % V == 0 && map.image_stride / V == 0;",
        ),
    },
    "components/cuda/ids.cu": {
        "all threads have the total": (
            "if (thread() == 1) bitmap.of_segment[block_index()] = total;",
        ),
    },
    "components/cuda/label_tile.h": {
        "no lane has so many before it": (
            "for (unsigned delta = 1; delta <= kWarpSize; delta *= 2) {",
        ),
    },
    "components/cuda/means.cu": {
        "a warp's own once more": (
            "for (int i = 0; i < kMaximumWarps; i++) largest = larger(largest, warp_largest[i]);",
        ),
        "a half of nothing": ("for (int halving = 0; halving <= kHalvings; halving++) {",),
    },
    "components/cuda/tiles.h": {
        "the first pixel starts no run behind it": ("for (int i = 0; i < kSpan; i++) {",),
    },
    "counts/cuda/tables.h": {
        _ENOUGH: (
            "static constexpr int64_t kMaxWords = 6145; // report: dynamic counts_*_kernel<* 4 * "
            "6144",
        ),
        "nothing added never carries": (
            "const uint32_t before = value[j] != 0 ? atomic_add(words + sum[j], value[j]) : 1;",
        ),
    },
    "cross_entropy/cuda/interpolated.cu": {
        "a block a tile, or blocks without one": (
            "work.blocks = std::max(work.tiles, Policy::kMaxBlocks);",
        ),
    },
    "cross_entropy/cuda/pixel.h": {
        "kernels of losses that vary compute the others, too": (
            "return p.label_smoothing >= 0 || p.modulation.used() || p.adjustment.offset;",
        ),
    },
    "cross_entropy/cuda/stored.cu": {
        _APART: ("if (is_one_image(p.map) && (!p.grad_input && is_one_image(p.grad_map))) {",),
        "one of the buckets is always found": ("int width = 1;",),
        "a class that is not present": ("for (int c = 0; c <= K; c++) {",),
        "backends give both maps the same layout": (
            "const bool same_layout = p.grad_input || p.grad_map.layout == map.layout;",
        ),
        _ANOTHER_KERNEL: (
            "const bool same_layout = !p.grad_input && p.grad_map.layout == map.layout;",
            "const bool same_layout = !p.grad_input || p.grad_map.layout != map.layout;",
            "!is_noisy(p) && map.pixels > kMinTiledPixels && has_short_strides(map) &&",
            "(!p.grad_input && has_short_strides(p.grad_map));",
            "if (tiled && map.layout == Layout::planar && map.classes < kMaxClassesOfThread) {",
            "if (tiled && map.classes < kMaxTileClasses) {",
        ),
        "the strided kernel has no bucket": ("Strategy::strided, 1};",),
        "a tile more, none of whose pixels there is": (
            "for (int64_t tile = block_index(); tile <= work.tiles; tile += grid_size()) {",
        ),
        _NO_CLASS: (
            "? A(1)",
            "const A exponential = valid ? math::exp_nonpositive(logit_of(c) - maximum) : A(1);",
            "A maximum = 1, pixel_weight = 1, upstream = 1;",
            "A maximum = 0, pixel_weight = 0, upstream = 1;",
            "A maximum = 0, pixel_weight = 1, upstream = 0;",
        ),
        _SMOOTHS_BY_ZERO: (
            "const Constants<A> constants(p, Variant::kSmooths ? work.shares : "
            "TargetShares{1, 1});",
            "static constexpr bool kExact = true, kSmooths = true;",
            "run(PlanarVariant<Spaced, K, kLeast, kPlain, true>());",
            "run(PlanarVariant<Adjacent, K, kLeast, kPlain, true>());",
        ),
        _SLOWER: (
            "(!p.grad_input && fits_vectors<T, V>(p.grad_input, p.grad_map)) &&",
            "(p.upstream_is_scalar && factors_fit(p.upstream)) && factors_fit(p.loss) &&",
            "(!p.grad_input && vectors_are_aligned(p.grad_input, p.grad_map, sizeof(T)));",
        ),
        _ASKED_FOR: (
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, VariedBuckets()) - 1;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, VariedBuckets()) ;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, PlanarBuckets()) - 1;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, PlanarBuckets()) ;",
        ),
        "the general kernel computes the same once more": (
            "return run_exact(Planar(), exact_classes, loss_varies) &&",
        ),
        "another number of resident blocks": (
            "static constexpr bool kExact = true, kSmooths = kVariation != kPlain;",
            "static constexpr bool kExact = false, kSmooths = false;",
        ),
        _BY_ITSELF: ("bool done = true;",),
        _MORE_MEMORY: (
            "Policy::kPlanarThreads, 1, stream, p, work);",
            "launch(cross_entropy_strided_kernel<T>, work.blocks, Policy::kStridedThreads, 1, "
            "stream, p, work,",
            "return {work.blocks, 1, [work](const CrossEntropyParams& unmerged, Stream stream) {",
        ),
    },
    "dice/cuda/plane_gradient.cu": {
        _MORE_MEMORY: ("return {0, 1, [work](const DiceBceParams& p, Stream stream) {",),
        "no thread has a pixel beyond the last tile": (
            "for (int tile = int(plane.block); tile <= tiles; tile += step) {",
        ),
    },
    "dice/cuda/plane_sums.cu": {
        "of a masked pixel, whose cross-entropy is 0": (
            "for (int j = 0; j < V; j++) loss[j] *= of.counts[j] ? of.weight[j] : 1.f;",
        ),
    },
    "dice/cuda/planar.h": {
        _ASKED_FOR: (
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, AdjacentBuckets()) - 1;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, AdjacentBuckets()) ;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, SpacedBuckets()) - 1;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, SpacedBuckets()) ;",
        ),
    },
    "dice/cuda/planar_gradient.cu": {
        "of a class that is not there, whose probability is 0": ("float slope = 1;",),
        "gradients of ignored pixels are set to 0 once more": ("if (!any) ;",),
    },
    "dice/cuda/planes.h": {
        _ANOTHER_KERNEL: (
            "return p.map.layout == Layout::planar && (!p.grad_input && p.grad_map.layout == "
            "Layout::planar) &&",
        ),
    },
    "label_uncertainty/cuda/label_uncertainty.cu": {
        "a thread stays for another step at its tile, and finds no pixel": (
            "if (at > LabelUncertaintyPolicy::kTile) {",
        ),
        _SLOWER: (
            "map.pixels % V == 0 && map.image_stride / V == 0);",
            "(p.upstream_is_scalar && factors_fit(p.upstream)) && factors_fit(p.loss) &&",
        ),
        _ANOTHER_KERNEL: ("if constexpr (std::is_same_v<T, double>) {",),
        _MORE_MEMORY: (
            "return {work.blocks, 1, [work](const LabelUncertaintyParams& p, Stream stream) {",
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
    "statistics/cuda/pixel.h": {
        _ENOUGH: (
            "constexpr float kNoMass = -151; // the power is 0",
            "return p * binary_logarithm(larger(p, (2 * 0x1p-126f)));",
        ),
        _EQUAL: (
            "if (other_mean > mean || (other_mean == mean && other_label <= label)) {",
            "information <= A(0) ? A(0) : information};",
            "for (int i = 0; i < size; i++) { // labels increase with parts",
        ),
        "a warp tells itself": ("if (size == 0) return;", "if (size == 1) ;"),
    },
    "statistics/cuda/policy.h": {
        "only results of 2^32 pixels show it": (
            "if (!has_short_strides(map) || result_pixels(map, interpolation) >= 0xffffffff) {",
            "if (!has_short_strides(map) || result_pixels(map, interpolation) > 0x100000000) {",
        ),
        _ANOTHER_KERNEL: (
            "result_pixels(map, interpolation) > kMinTiledPixels;",
            "if (dtype == Dtype::f64 || map.layout == Layout::strided || "
            "map.classes >= kMaxTileClasses ||",
            "map.pixels <= kMinTiledPixels) {",
            "const bool registers = map.layout == Layout::planar && "
            "map.classes < kMaxClassesOfThread;",
        ),
    },
    "statistics/cuda/samples.cu": {
        "the first sample lies where it lies": (
            "for (int64_t s = 0; s < p.count && samples.stride; s++) {",
            "for (int64_t s = 1; s < p.count; s++) samples.scattered[s] = distance(s);",
        ),
        _NO_PIXEL: ("inside ? owner.owned : 1, value);",),
        _OVERWRITTEN: ("Prediction<A> best{A(1), A(0), 0};",),
        _ASKED_FOR: (
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, PlanarBuckets()) - 1;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, PlanarBuckets()) ;",
        ),
        _SLOWER: ("bool aligned = false;",),
        _EQUAL: (
            "std::min<int64_t>(most > kWarpSize ? most / kWarpSize * kWarpSize : most, "
            "kStridedThreads);",
        ),
        _BY_ITSELF: ("bool done = true;",),
        _MORE_MEMORY: (
            "launch(statistics_planar_registers_kernel<T, Variant>, work.blocks, "
            "Policy::kRegisterThreads, 1,",
            "teams.threads(), 1, stream, make_samples(p), pixels, p.maps,",
        ),
        "no backend asks for the statistics of no sample": ("if (params.count < 0) {",),
    },
    "statistics/cuda/stream.cu": {
        _NO_PIXEL: ("rematerialized(pixels.map.class_stride), inside ? owner.owned : 1, value);",),
        _OVERWRITTEN: (
            "Prediction<A> best{mean[0], A(1), 0};",
            "best.consider_next(class_mean, A(1), int(c));",
        ),
        _ASKED_FOR: (
            "add_to_state<0>(owner, state, image * pixels.count + pixel,",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, StateBuckets()) - 1;",
            "constexpr int K = bucket(), kLeast = largest_bucket_below(K, StateBuckets()) ;",
        ),
        _MORE_MEMORY: (
            "teams.threads(), 1, stream, logits, pixels, state, work, teams);",
            "Policy::kRegisterThreads, 1, stream, logits, p.map, state, work);",
            "launch(accumulate_strided_kernel<T, decltype(pixels)>, work.blocks, kMapThreads, 1, "
            "stream,",
            "launch(finalize_kernel<A>, work.blocks, kMapThreads, 1, stream, p, work,",
        ),
    },
    "math/label_uncertainty.h": {
        _EQUAL: (
            "const auto is_large = log_variance >= P{};",
            "const P beside = t <= nothing ? -kept * t : flipped * t;",
            "const P divisor = e <= smallest ? smallest : e;",
        ),
        "a number is as large as any above every threshold": (
            "const P one = P{} + A(1), a = P{} + kA, smallest = P{} + A((2 * 0x1p-126));",
        ),
    },
    "math/blocks.h": {
        _EQUAL: (
            "uint32_t cell = starts <= last ? starts : last;",
            "cell += (k <= last ? k : last) - first_end + 1;",
        ),
    },
    "math/interpolate.h": {
        "one position, whose scale counts nothing": (
            "return {source, size, size >= 1 ? A(source - 1) / A(size - 1) : A(0), A(0)};",
            "return {source, size, size > 0 ? A(source - 1) / A(size - 1) : A(0), A(0)};",
            "return {source, size, size > 1 ? A(source - 1) / A(size - 1) : A(1), A(0)};",
        ),
        _EQUAL: (
            "const A inside = at >= A(0) ? at : A(0);",
            "const int last = axis.source - 1, lower = int(inside) <= last ? int(inside) : last;",
        ),
        "a guess, from which the loops below go on": (
            "const A guess = (A(source) - axis.offset) / axis.scale - axis.offset;",
            "const A guess = (A(source) + axis.offset) * axis.scale - axis.offset;",
            "const A guess = (A(source) + axis.offset) / axis.scale + axis.offset;",
            "int position = guess <= A(axis.size) ? int(guess > A(0) ? guess : A(0)) : axis.size;",
            "int position = guess < A(axis.size) ? int(guess >= A(0) ? guess : A(0)) : axis.size;",
            "int position = guess < A(axis.size) ? int(guess > A(1) ? guess : A(0)) : axis.size;",
            "int position = guess < A(axis.size) ? int(guess > A(0) ? guess : A(1)) : axis.size;",
        ),
        "the loops below find the end, too": (
            "if (source > axis.source || !(axis.scale > A(0))) return axis.size;",
            "if (source >= axis.source && !(axis.scale > A(0))) return axis.size;",
            "if (source >= axis.source || !(axis.scale >= A(0))) return axis.size;",
        ),
        "nothing lies before the first position": (
            "while (position >= 0 && neighbours_of(axis, position - 1).lower >= source) "
            "--position;",
        ),
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
