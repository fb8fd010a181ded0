// How launches walk over the pixels of images, and which of a kernel's variants takes them.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "../class_map.h"
#include "../element.h"
#include "integer.h"

namespace segunc::device {

// Tile t of an image starts at pixel t * tile; blocks take the tiles of all images in turn.
struct Work {
  int64_t tile;  // pixels
  Divisor tiles_per_image;
  int64_t tiles, pixels;  // of all images
  int64_t blocks;
  int64_t images_step, tiles_step;  // of an image: from a block's tile to its next
};

// Tiles do not span images: on smaller ones most of their threads would idle.
constexpr int64_t kMinTiledPixels = 32;  // tuning

inline Work make_work(int64_t images, int64_t pixels, int64_t tile, int64_t max_blocks) {
  Work work{};
  work.tile = tile;
  work.tiles_per_image = Divisor(divide_up(pixels, tile));
  work.tiles = work.tiles_per_image.value * images;
  work.pixels = pixels * images;
  work.blocks = std::min(work.tiles, max_blocks);
  if (work.blocks > 0) {
    work.images_step = work.blocks / work.tiles_per_image.value;
    work.tiles_step = work.blocks % work.tiles_per_image.value;
  }
  return work;
}

// A block's tiles, in turn, with a single division. An image has less than 2^30 of them.
struct TileWalk {
  int64_t image;
  int tile;  // of the image

  SEGUNC_DEVICE explicit TileWalk(const Work& work) {
    int64_t remainder;
    image = work.tiles_per_image.divide(block_index(), remainder);
    tile = int(remainder);
  }
  SEGUNC_DEVICE void advance(const Work& work) {
    image += work.images_step;
    tile += int(work.tiles_step);
    if (tile >= int(work.tiles_per_image.value)) {
      tile -= int(work.tiles_per_image.value);
      image++;
    }
  }
};

// channels_last images that follow each other are one long image to whatever walks over pixels.
inline bool is_one_image(const ClassMap& map) {
  return map.layout == Layout::channels_last && map.image_stride == map.pixels * map.classes;
}

inline void merge_images(ClassMap& map) {
  map.pixels *= map.images;
  map.size[2] = map.pixels;
  map.images = 1;
}

// Of a tile of so many pixels that starts `left` before the end of its image.
SEGUNC_DEVICE int tile_pixels(int64_t tile, int64_t left) { return int(left < tile ? left : tile); }

// Whether kernels may multiply the stride of classes as 32 bits.
inline bool has_short_strides(const ClassMap& map) { return map.class_stride <= 0xffffffff; }

// Whether every V neighbouring pixels are one aligned vector: of a map of T, and of indices.
template <class T, int V>
bool fits_vectors(const void* data, const ClassMap& map) {
  return is_vector_aligned(data, V * sizeof(T)) && map.pixels % V == 0 &&
         map.class_stride % V == 0 && map.image_stride % V == 0;
}
template <int V>
bool fits_vectors(const void* data, IndexType type) {
  return is_vector_aligned(data, V * bytes_of(type));
}

// What a launch without a kernel ends with.
[[noreturn]] inline void no_kernel(const char* kernel, Dtype dtype, int64_t classes) {
  static const char* const kDtypes[] = {"float64", "float32", "bfloat16", "float16"};
  throw std::runtime_error(std::string("no kernel ") + kernel + " of " + kDtypes[int(dtype)] +
                           " and " + std::to_string(classes) + " classes");
}

// What call gives for a value of the type that a dtype stands for. kernel: the name for an error.
template <class Call>
auto with_dtype(const char* kernel, Dtype dtype, Call call) {
  switch (dtype) {
    case Dtype::f64:
      return call(double());
    case Dtype::f32:
      return call(float());
    case Dtype::bf16:
      return call(bfloat16());
    case Dtype::f16:
      return call(float16());
  }
  throw std::runtime_error(std::string("no kernel ") + kernel + " of this dtype");
}

// The first of increasing numbers of classes that is enough; 0 without one.
template <int... K>
int smallest_bucket(int64_t classes, std::integer_sequence<int, K...>) {
  int bucket = 0;
  ((bucket = bucket == 0 && classes <= K ? K : bucket), ...);
  return bucket;
}

// The last of increasing numbers of classes that is not enough for those of a bucket; 0 without
// one.
template <int... K>
constexpr int largest_bucket_below(int bucket, std::integer_sequence<int, K...>) {
  int below = 0;
  ((below = K < bucket ? K : below), ...);
  return below;
}

// Calls launch_exact with the number of classes where it is one of these; false where it is not.
template <class Launch, int... C>
bool with_exact(int64_t classes, std::integer_sequence<int, C...>, Launch launch_exact) {
  bool done = false;
  ((C == classes ? (launch_exact(std::integral_constant<int, C>()), done = true) : done), ...);
  return done;
}

// Calls launch_bucket with the smallest bucket that holds the classes; false without one.
template <class Launch, int... K>
bool with_bucket(int64_t classes, std::integer_sequence<int, K...> buckets, Launch launch_bucket) {
  const int wanted = smallest_bucket(classes, buckets);
  bool done = false;
  ((K == wanted ? (launch_bucket(std::integral_constant<int, K>()), done = true) : done), ...);
  return done;
}

}  // namespace segunc::device
