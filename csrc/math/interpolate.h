// Linear interpolation along one axis with torch's coordinates, and its adjoint. Bilinear and
// trilinear interpolation apply it axis by axis.
//
// Position o of the target lies at x in the source:
//   align_corners       x = o * scale,                        scale = (source - 1) / (size - 1)
//   else                x = max(0, (o + 1/2) * scale - 1/2),  scale = source / size
// and its value is (1 - f) v_i + f v_{i+1} with i = floor x, f = x - i. At f = 0 and at the last
// source position there is no second neighbour: nothing is read there, not even a NaN.
// The adjoint sends (1 - f) and f of the gradient at o to i and i + 1.
#pragma once
#include <cmath>

#include "../common/host_device.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace math {

// Rounded once whatever the compiler does, so that every traversal has the same coordinates.
SEGUNC_HD float multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
SEGUNC_HD double multiply_add(double a, double b, double c) { return ::fma(a, b, c); }

// `source` > 0 positions resampled to `size`, both at most 2^30.
template <class A>
struct InterpolatedAxis {
  int source, size;
  A scale, offset;
};

template <class A>
SEGUNC_HD InterpolatedAxis<A> interpolated_axis(int source, int size, bool align_corners) {
  if (!align_corners) return {source, size, A(source) / A(size), A(0.5)};
  return {source, size, size > 1 ? A(source - 1) / A(size - 1) : A(0), A(0)};
}

// The source positions that one of the target blends, equal where there is but one, and the
// weight of the upper; the lower has the rest.
template <class A>
struct Neighbours {
  int lower, upper;
  A weight;
};

template <class A>
SEGUNC_HD Neighbours<A> neighbours_of(const InterpolatedAxis<A>& axis, int position) {
  const A at = multiply_add(axis.scale, A(position) + axis.offset, -axis.offset);
  const A inside = at > A(0) ? at : A(0);
  const int last = axis.source - 1, lower = int(inside) < last ? int(inside) : last;
  const A weight = lower < last ? inside - A(lower) : A(0);
  return {lower, weight > A(0) ? lower + 1 : lower, weight};
}

// The value, of the neighbours' values: numbers or vectors of them.
template <class A>
SEGUNC_HD A interpolate(A lower, A upper, A weight) {
  return (1.f - weight) * lower + weight * upper;
}

// The share that a source position has in the value, hence in its gradient.
template <class A>
SEGUNC_HD A interpolation_share(const Neighbours<A>& neighbours, int source) {
  return (source == neighbours.lower ? A(1) - neighbours.weight : A(0)) +
         (source == neighbours.upper ? neighbours.weight : A(0));
}

// The first position whose lower neighbour is `source` or beyond; `size` if there is none.
template <class A>
SEGUNC_HD int first_position(const InterpolatedAxis<A>& axis, int source) {
  if (source <= 0) return 0;
  if (source >= axis.source || !(axis.scale > A(0))) return axis.size;
  const A guess = (A(source) + axis.offset) / axis.scale - axis.offset;
  int position = guess < A(axis.size) ? int(guess > A(0) ? guess : A(0)) : axis.size;
  while (position > 0 && neighbours_of(axis, position - 1).lower >= source) --position;
  while (position < axis.size && neighbours_of(axis, position).lower < source) ++position;
  return position;
}

// The positions [first, last) that have `source` among their neighbours. Those at the ends may
// have it with a share of 0.
struct Support {
  int first, last;
};
template <class A>
SEGUNC_HD Support support_of(const InterpolatedAxis<A>& axis, int source) {
  return {first_position(axis, source - 1), first_position(axis, source + 1)};
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
