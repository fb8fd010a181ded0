// Pixels whose logits are stored, and pixels whose logits are interpolated on the fly: kernels that
// read one logit at a time are written once for both.
#pragma once
#include "../../math/interpolate.h"
#include "../class_map.h"
#include "../element.h"
#include "integer.h"
#include "softmax.h"

namespace segunc::device {

template <class A>
struct Axes {
  math::InterpolatedAxis<A> slices, rows, columns;
};

template <class A>
Axes<A> make_axes(const ClassMap& map, const Interpolation& interpolation) {
  const auto axis = [&](int i) {
    return math::interpolated_axis<A>(int(map.size[i]), int(interpolation.size[i]),
                                      interpolation.align_corners);
  };
  return {axis(0), axis(1), axis(2)};
}

// The value between two: where the upper one's weight is 0 it counts nothing, not even a NaN.
template <class A>
SEGUNC_DEVICE A blend(A lower, A upper, A weight) {
  return weight > A(0) ? math::interpolate(lower, upper, weight) : lower;
}

// A pixel's place among its logits, in elements from the first: `logit` gives the one at `data`, a
// class's first logit.
struct StoredPixel {
  int64_t offset;

  template <class T>
  SEGUNC_DEVICE accumulate_t<T> logit(const T* data) const {
    return to_accumulate(data[offset]);
  }
};

template <class A>
struct InterpolatedPixel {
  int64_t offset;              // of the lowest neighbour
  int64_t slice, row, column;  // to the upper ones, 0 where there is none
  A slice_weight, row_weight, column_weight;

  SEGUNC_DEVICE InterpolatedPixel(const ClassMap& map, int64_t image,
                                  const math::Neighbours<A>& slices,
                                  const math::Neighbours<A>& rows,
                                  const math::Neighbours<A>& columns)
      : offset(image * map.image_stride + slices.lower * map.stride[0] +
               rows.lower * map.stride[1] + columns.lower * map.stride[2]),
        slice((slices.upper - slices.lower) * map.stride[0]),
        row((rows.upper - rows.lower) * map.stride[1]),
        column((columns.upper - columns.lower) * map.stride[2]),
        slice_weight(slices.weight),
        row_weight(rows.weight),
        column_weight(columns.weight) {}

  // Of the lower slice, `first` being the lowest neighbour.
  template <class T>
  SEGUNC_DEVICE A in_slice(const T* first) const {
    const A a = to_accumulate(first[0]), b = to_accumulate(first[column]);
    const A c = to_accumulate(first[row]), d = to_accumulate(first[row + column]);
    return blend(blend(a, b, column_weight), blend(c, d, column_weight), row_weight);
  }
  template <class T>
  SEGUNC_DEVICE A logit(const T* data) const {
    const A lower = in_slice(data + offset);
    return slice_weight > A(0)
               ? math::interpolate(lower, in_slice(data + offset + slice), slice_weight)
               : lower;
  }
};

// The logits of an interpolated pixel, of classes one after another; the others have no mass.
template <int K, class T, class A>
SEGUNC_DEVICE void load_logits(const InterpolatedPixel<A>& pixel, const T* data,
                               int64_t class_stride, int classes, A (&value)[K][1]) {
  const T* const first = data + pixel.offset;
#pragma unroll
  for (int i = 0; i < K; i++) {
    value[i][0] = i < classes ? pixel.in_slice(first + i * class_stride) : -kInfinity<A>;
  }
  if (pixel.slice_weight > A(0)) {
    const T* const second = first + pixel.slice;
#pragma unroll
    for (int i = 0; i < K; i++) {
      if (i < classes) {
        const A upper = pixel.in_slice(second + i * class_stride);
        value[i][0] = math::interpolate(value[i][0], upper, pixel.slice_weight);
      }
    }
  }
}

// The pixels of a launch's results. count: of an image, in raster order.
struct StoredPixels {
  int64_t count, image_stride;
  PixelOffset offset;

  explicit StoredPixels(const ClassMap& map)
      : count(map.pixels), image_stride(map.image_stride), offset(map) {}

  SEGUNC_DEVICE StoredPixel at(int64_t image, int64_t pixel) const {
    return {image * image_stride + offset(pixel)};
  }
};

template <class A>
struct InterpolatedPixels {
  int64_t count;
  ClassMap map;  // of the logits
  Axes<A> axes;
  Divisor rows, columns;

  InterpolatedPixels(const ClassMap& map, const Interpolation& interpolation)
      : count(result_pixels(map, interpolation)),
        map(map),
        axes(make_axes<A>(map, interpolation)),
        rows(interpolation.size[1]),
        columns(interpolation.size[2]) {}

  SEGUNC_DEVICE InterpolatedPixel<A> at(int64_t image, int64_t pixel) const {
    int64_t row, column;
    const int64_t slice = rows.divide(columns.divide(pixel, column), row);
    return {map, image, math::neighbours_of(axes.slices, int(slice)),
            math::neighbours_of(axes.rows, int(row)),
            math::neighbours_of(axes.columns, int(column))};
  }
};

// Calls launch_pixels with the pixels that the results of a launch have.
template <class A, class Params, class Launch>
void with_pixels(const Params& p, Launch launch_pixels) {
  if (p.interpolation.used) {
    launch_pixels(InterpolatedPixels<A>(p.map, p.interpolation));
  } else {
    launch_pixels(StoredPixels(p.map));
  }
}

}  // namespace segunc::device
