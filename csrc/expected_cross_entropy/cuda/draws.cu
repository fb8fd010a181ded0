// Expected cross-entropy on a GPU. A team of threads has a pixel, a power of two of them, and each
// thread some of its draws, in registers: classes pass one after the other, twice, once for the
// softmax of every draw and once for the gradients. In between, normal numbers wait in shared
// memory or, where it has no room for those of all classes, are made anew. Instructions bound it,
// not memory: every layout and type is read by one traversal.
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../../common/device/labels.h"
#include "../../common/device/softmax.h"
#include "../../common/device/work.h"
#include "../../math/cross_entropy.h"
#include "../../math/expected.h"
#include "../../math/philox.h"
#include "kernels.h"

namespace segunc::cuda {
namespace {

using namespace device;

constexpr int kExpectedThreads = 128;  // tuning
// report: budget expected_cross_entropy_kernel<*false, (Numbers)0> 290
// report: budget expected_cross_entropy_kernel<*true, (Numbers)0> 150
// report: budget expected_cross_entropy_kernel<*float, 16, false, (Numbers)1> 195
// report: budget expected_cross_entropy_kernel<*float, 8, true, (Numbers)1> 112

// Normal numbers of a thread, as many draws, or twice as many if they are antithetic: few, those of
// all classes kept in shared memory, or many, made anew wherever they are read.
enum class Numbers : int { kept, many };

constexpr int kFewNumbers = 4;
template <class A, bool kAntithetic>
constexpr int kManyNumbers = (sizeof(A) > 4 ? 8 : 16) / (kAntithetic ? 2 : 1);

// What a launch adds to the parameters.
struct Walk {
  Divisor pixels;  // of an image
  PixelOffset mean, scale, grad_mean, grad_scale;
  int64_t count;  // of pixels
  unsigned team;
};

// ---- elements, of type T or, void, of any that is computed in A ----

template <class T, class A>
SEGUNC_DEVICE A load_element(const void* data, Dtype dtype, int64_t at) {
  if constexpr (!std::is_void_v<T>) {
    return to_accumulate(static_cast<const T*>(data)[at]);
  } else if constexpr (sizeof(A) > 4) {
    return load_element<double, A>(data, dtype, at);
  } else {
    if (dtype == Dtype::f32) return load_element<float, A>(data, dtype, at);
    if (dtype == Dtype::bf16) return load_element<bfloat16, A>(data, dtype, at);
    return load_element<float16, A>(data, dtype, at);
  }
}

template <class T, class A>
SEGUNC_DEVICE void store_element(void* data, Dtype dtype, int64_t at, A value) {
  if constexpr (!std::is_void_v<T>) {
    static_cast<T*>(data)[at] = from_accumulate<T>(value);
  } else if constexpr (sizeof(A) > 4) {
    store_element<double>(data, dtype, at, value);
  } else {
    if (dtype == Dtype::f32) return store_element<float>(data, dtype, at, value);
    if (dtype == Dtype::bf16) return store_element<bfloat16>(data, dtype, at, value);
    store_element<float16>(data, dtype, at, value);
  }
}

// ---- teams ----

template <class A>
SEGUNC_DEVICE A team_sum(A value, unsigned team) {
  // report: trips log2(team)
  for (unsigned delta = team / 2; delta > 0; delta /= 2) {
    value += shuffle_xor(kFullMask, value, delta);
  }
  return value;
}
template <class A>
SEGUNC_DEVICE A team_maximum(A value, unsigned team) {
  // report: trips log2(team)
  for (unsigned delta = team / 2; delta > 0; delta /= 2) {
    const A other = shuffle_xor(kFullMask, value, delta);
    value = other > value ? other : value;
  }
  return value;
}

// ---- exponents of two in single precision, of e in double ----

template <class A>
constexpr A kUnit = sizeof(A) > 4 ? A(1) : A(kLog2E);  // of a natural exponent

SEGUNC_DEVICE float unit_exponential(float x) { return power_of_two(x); }
SEGUNC_DEVICE double unit_exponential(double x) { return ::exp(x); }

// ---- a pixel ----

// A pixel's normal numbers that are a thread's.
template <class A, int N, Numbers kNumbers>
struct Drawn {
  int64_t pixel;
  unsigned part;  // of the team
  uint64_t seed;

  SEGUNC_DEVICE void draw(int c, A (&normal)[N]) const {
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      uint32_t words[4];
      math::words_of<kNumbers == Numbers::kept ? math::kPhiloxRounds : 2>(
          pixel, uint32_t(c), part * (N / 4) + k / 4, seed, words);
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const auto pair = math::normals_of<A>(words[i], words[i + 1]);
        normal[k + i] = pair.first, normal[k + i + 1] = pair.second;
      }
    }
  }
  SEGUNC_DEVICE static Vector<A, N>* kept() { return dynamic_shared<Vector<A, N>>() + thread(); }
  SEGUNC_DEVICE void keep(int classes) const {
    if constexpr (kNumbers == Numbers::kept) {
      // report: trips C
      for (int c = 0; c < classes; c++) {
        A normal[N];
        draw(c, normal);
        Vector<A, N> vector;
#pragma unroll
        for (int k = 0; k < N; k++) vector[k] = normal[k];
        kept()[c * int(block_size())] = vector;
      }
    }
  }
  SEGUNC_DEVICE void get(int c, A (&normal)[N]) const {
    if constexpr (kNumbers == Numbers::kept) {
      const Vector<A, N> vector = kept()[c * int(block_size())];
#pragma unroll
      for (int k = 0; k < N; k++) normal[k] = vector[k];
    } else {
      draw(c, normal);
    }
  }
};

// What is added to the mean of class c by the numbers of the classes from `first` to c, times what
// scale() gives for one after the other. normal: the last of them.
template <class A, int N, Numbers kNumbers, class Scale>
SEGUNC_DEVICE void offsets_of(const Drawn<A, N, kNumbers>& numbers, int first, int c, Scale scale,
                              A (&normal)[N], A (&offset)[N]) {
#pragma unroll
  for (int k = 0; k < N; k++) offset[k] = A(0);
  // report: trips rows / C
#pragma unroll 1
  for (int i = first; i <= c; i++) {
    numbers.get(i, normal);
    const A s = scale();
#pragma unroll
    for (int k = 0; k < N; k++) offset[k] += s * normal[k];
  }
}

template <class T, class A, int N, bool kAntithetic, Numbers kNumbers>
__global__ void __launch_bounds__(kExpectedThreads, kNumbers == Numbers::many ? 2 : 6)
    expected_cross_entropy_kernel(const ExpectedCrossEntropyParams p, const Walk walk) {
  constexpr int D = kAntithetic ? 2 * N : N;
  const bool triangular = p.is_triangular();
  const int C = int(p.map.classes);
  const unsigned team = walk.team, part = thread() & (team - 1);
  const int64_t pixels_of_block = block_size() / team;
  const bool gradients = p.makes_gradients();
  const A log_draws = math::log_positive(A(p.draws));
  const auto* weight = static_cast<const A*>(p.weight);
  const auto* pixel_weight = static_cast<const A*>(p.pixel_weight);
  const auto* upstream = static_cast<const A*>(p.upstream);
  A shared_factor = p.normalizer ? A(1 / *p.normalizer) : A(1);
  if (upstream && p.upstream_is_scalar) shared_factor *= *upstream;
  BadTarget bad;
  double sum = 0;

  // report: hot C * draws
  for (int64_t first = block_index() * pixels_of_block; first < walk.count;
       first += grid_size() * pixels_of_block) {
    const int64_t at = first + thread() / team;
    const bool inside = at < walk.count;
    const int64_t target = inside ? load_index(p.target, p.target_type, at) : p.ignore_index;
    const int label = label_of(target, p.map.classes, p.ignore_index, bad);
    const bool counts = label >= 0;
    const bool any = ballot(kFullMask, counts) != 0;
    int64_t pixel = 0;
    const int64_t image = walk.pixels.divide(inside ? at : 0, pixel);
    const int64_t mean_at = image * p.map.image_stride + walk.mean(pixel);
    const int64_t scale_at = image * p.scale_map.image_stride + walk.scale(pixel);
    const Drawn<A, N, kNumbers> numbers{at, part, uint64_t(*p.seed)};

    // Elements are read in their order.
    int64_t next_mean = mean_at, next_scale = scale_at;
    const auto read = [&](const void* data, int64_t& next, int64_t stride) {
      const A value = counts ? kUnit<A> * load_element<T, A>(data, p.dtype, next) : A(0);
      next += stride;
      return value;
    };
    // Logits of a class in the thread's draws.
    const auto logits_of = [&](int c, A(&normal)[N], A(&logit)[D]) {
      A offset[N];
      offsets_of(
          numbers, triangular ? 0 : c, c,
          [&] { return read(p.scale, next_scale, p.scale_map.class_stride); }, normal, offset);
      const A mean = read(p.mean, next_mean, p.map.class_stride);
#pragma unroll
      for (int d = 0; d < D; d++) {
        const A o = offset[kAntithetic ? d / 2 : d];
        logit[d] = kAntithetic && d % 2 ? mean - o : mean + o;
      }
    };

    A maximum[D], total[D], labelled[D];
#pragma unroll
    for (int d = 0; d < D; d++) {
      maximum[d] = math::kNoLogProbability<A>, total[d] = A(0), labelled[d] = A(0);
    }
    if (any) {
      numbers.keep(C);
      // report: trips C
#pragma unroll 1
      for (int c = 0; c < C; c++) {
        A normal[N], logit[D];
        logits_of(c, normal, logit);
#pragma unroll
        for (int d = 0; d < D; d++) {
          const A z = logit[d], above = z - maximum[d];
          const A e = unit_exponential(above > A(0) ? -above : above);
          total[d] = above > A(0) ? total[d] * e + A(1) : total[d] + e;
          maximum[d] = above > A(0) ? z : maximum[d];
          labelled[d] = c == label ? z : labelled[d];
        }
      }
    }
    // log p of the labelled class, and its largest of all draws.
    A log_p[D], largest = math::kNoLogProbability<A>;
#pragma unroll
    for (int d = 0; d < D; d++) {
      // An infinite logit has no softmax.
      total[d] = math::log_positive(total[d] + (maximum[d] - maximum[d]));
      log_p[d] = (labelled[d] - maximum[d]) * (A(1) / kUnit<A>)-total[d];
      if (int64_t(part) * D + d >= p.draws) log_p[d] = math::kNoLogProbability<A>;
      largest = log_p[d] > largest ? log_p[d] : largest;
    }
    largest = team_maximum(largest, team);
    A mass = 0;
#pragma unroll
    for (int d = 0; d < D; d++) {
      const A relative = (log_p[d] - largest) * kUnit<A>;
      // What a draw's exponentials are relative to for their share in the gradient.
      maximum[d] += total[d] * kUnit<A> - relative;
      labelled[d] = unit_exponential(relative);
      mass += labelled[d];
    }
    mass = team_sum(mass, team);

    A factor = 0;
    const A nothing = label == kOutOfRange ? kNaN<A> : A(0);
    if (counts) {
      const A w = weight ? weight[label] : A(1);
      const A u = pixel_weight ? pixel_weight[at] : A(1);
      const A flowing =
          upstream && !p.upstream_is_scalar ? upstream[at] * shared_factor : shared_factor;
      const A value = w * math::negative_log_mean(largest, mass, log_draws);
      const auto weighted = math::weighted(value, u, flowing);
      factor = weighted.factor * w / mass;
      if (part == 0) {
        sum += double(weighted.loss);
        if (p.loss) static_cast<A*>(p.loss)[at] = weighted.loss;
        if (p.grad_pixel_weight) {
          static_cast<A*>(p.grad_pixel_weight)[at] = weighted.weight_gradient;
        }
      }
    } else if (inside && part == 0) {
      sum += double(nothing);
      if (p.loss) static_cast<A*>(p.loss)[at] = nothing;
      if (p.grad_pixel_weight) static_cast<A*>(p.grad_pixel_weight)[at] = nothing;
    }
    if (!gradients) continue;  // tuning

    int64_t grad_mean_at = image * p.grad_map.image_stride + walk.grad_mean(pixel);
    int64_t grad_scale_at = image * p.grad_scale_map.image_stride + walk.grad_scale(pixel);
    next_mean = mean_at, next_scale = scale_at;
    const bool writes_mean = p.grad_mean && inside && part == 0;
    const bool writes_scale = p.grad_scale && inside && part == 0;
    // report: trips C
#pragma unroll 1
    for (int c = 0; c < C; c++) {
      A normal[N], by_number[N], of_mean = 0;
#pragma unroll
      for (int k = 0; k < N; k++) by_number[k] = A(0);
      if (any) {
        A logit[D];
        logits_of(c, normal, logit);
#pragma unroll
        for (int d = 0; d < D; d++) {
          A share = unit_exponential(logit[d] - maximum[d]);
          share -= c == label ? labelled[d] : A(0);
          of_mean += share;
          by_number[kAntithetic ? d / 2 : d] += kAntithetic && d % 2 ? -share : share;
        }
        of_mean = team_sum(of_mean, team);
      }
      if (writes_mean) {
        store_element<T>(p.grad_mean, p.dtype, grad_mean_at, counts ? of_mean * factor : nothing);
      }
      grad_mean_at += p.grad_map.class_stride;
      // report: trips rows / C
#pragma unroll 1
      for (int i = triangular ? 0 : c; i <= c; i++) {
        A of_scale = 0;
        if (any) {
          if (triangular) numbers.get(i, normal);
#pragma unroll
          for (int k = 0; k < N; k++) of_scale += by_number[k] * normal[k];
          of_scale = team_sum(of_scale, team);
        }
        if (writes_scale) {
          store_element<T>(p.grad_scale, p.dtype, grad_scale_at,
                           counts ? of_scale * factor : nothing);
        }
        grad_scale_at += p.grad_scale_map.class_stride;
      }
    }
  }
  // report: end
  bad.report(p.bad_target);
  store_partial(p, sum);
}

// ---- launch ----

struct Launch {
  Numbers numbers;
  unsigned threads, team;
  size_t shared_bytes;
  int64_t blocks;
};

// Threads of a block whose numbers of all classes fit in shared memory; 0 if not even a warp's do.
unsigned keeping_threads(int64_t classes) {
  for (unsigned threads = kExpectedThreads; threads >= kWarpSize; threads /= 2) {
    // report: dynamic expected_cross_entropy_kernel<* 49152 - 256
    if (classes * kFewNumbers * sizeof(float) * threads <= kMaxDynamicSharedBytes<BlockSums>) {
      return threads;
    }
  }
  return 0;
}

Launch make_launch(const ExpectedCrossEntropyParams& p) {
  const bool is_double = p.dtype == Dtype::f64;
  const int64_t most = is_double ? kManyNumbers<double, false> : kManyNumbers<float, false>;
  if (p.draws > most * int64_t(kWarpSize)) {
    throw std::invalid_argument("num_draws: expected at most " + std::to_string(most * kWarpSize) +
                                " on a GPU, got " + std::to_string(p.draws));
  }
  Launch launch{Numbers::many, kExpectedThreads, 1, 0, 0};
  const int64_t few = kFewNumbers * int64_t(kWarpSize);
  if (!is_double && p.numbers() <= few) {  // tuning
    if (const unsigned threads = keeping_threads(p.map.classes)) {
      launch.numbers = Numbers::kept;
      launch.threads = threads;
      launch.shared_bytes = size_t(p.map.classes) * kFewNumbers * sizeof(float) * threads;
    }
  }
  const int64_t many = most / (p.antithetic ? 2 : 1);
  const int64_t of_thread = launch.numbers == Numbers::many ? many : kFewNumbers;
  while (launch.team * of_thread < p.numbers()) launch.team *= 2;
  const int64_t count = p.map.images * p.map.pixels;
  const int64_t most_blocks = at_scale(8192);
  launch.blocks = divide_up(count, launch.threads / launch.team);  // tuning
  launch.blocks = std::min(launch.blocks, most_blocks);
  return launch;
}

template <bool kAntithetic>
auto kernel_of(Numbers numbers, Dtype dtype) {
  using N = Numbers;
  if (dtype == Dtype::f64) {
    return expected_cross_entropy_kernel<void, double, kManyNumbers<double, kAntithetic>,
                                         kAntithetic, N::many>;
  }
  if (numbers == N::many) {
    return expected_cross_entropy_kernel<void, float, kManyNumbers<float, kAntithetic>, kAntithetic,
                                         N::many>;
  }
  switch (dtype) {
    case Dtype::bf16:
      return expected_cross_entropy_kernel<bfloat16, float, kFewNumbers, kAntithetic, N::kept>;
    case Dtype::f16:
      return expected_cross_entropy_kernel<float16, float, kFewNumbers, kAntithetic, N::kept>;
    default:
      return expected_cross_entropy_kernel<float, float, kFewNumbers, kAntithetic, N::kept>;
  }
}

void launch_expected(const ExpectedCrossEntropyParams& p, const Launch& how, Stream stream) {
  const Walk walk{Divisor(p.map.pixels),
                  PixelOffset(p.map),
                  PixelOffset(p.scale_map),
                  PixelOffset(p.grad_map),
                  PixelOffset(p.grad_scale_map),
                  p.map.images * p.map.pixels,
                  how.team};
  const auto kernel =
      p.antithetic ? kernel_of<true>(how.numbers, p.dtype) : kernel_of<false>(how.numbers, p.dtype);
  launch(kernel, how.blocks, how.threads, how.shared_bytes, stream, p, walk);
}

}  // namespace

ExpectedCrossEntropyPlan plan_expected_cross_entropy(const ExpectedCrossEntropyParams& params) {
  const Launch how = make_launch(params);
  if (how.blocks == 0) return {};
  return {how.blocks, 0, [how](const ExpectedCrossEntropyParams& p, Stream stream) {
            launch_expected(p, how, stream);
          }};
}

}  // namespace segunc::cuda
