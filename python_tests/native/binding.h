// What the Python faces of all kernels share. Arrays are used in place. bfloat16 and float16 travel
// as uint16; `dtype` says which it is.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/class_map.h"
#include "common/element.h"

namespace segunc {

namespace py = pybind11;
using namespace py::literals;

// A folder's part of the module. Each binding.cpp has one, a constant that is constructed before
// the module is imported.
class Binding {
 public:
  using Define = void (*)(py::module_&);
  explicit Binding(Define define) { all().push_back(define); }
  static void define_all(py::module_& m) {
    for (const Define define : all()) define(m);
  }

 private:
  static std::vector<Define>& all() {
    static std::vector<Define> definitions;
    return definitions;
  }
};

template <class T>
T lookup(const std::map<std::string, T>& names, const std::string& name) {
  const auto found = names.find(name);
  if (found == names.end()) throw std::invalid_argument("unknown: " + name);
  return found->second;
}

inline Dtype dtype_of(const std::string& name) {
  static const std::map<std::string, Dtype> names = {
      {"f64", Dtype::f64}, {"f32", Dtype::f32}, {"bf16", Dtype::bf16}, {"f16", Dtype::f16}};
  return lookup(names, name);
}

inline IndexType index_type_of(const py::array& target) {
  static const std::map<std::string, IndexType> names = {{"int64", IndexType::i64},
                                                         {"int32", IndexType::i32},
                                                         {"int16", IndexType::i16},
                                                         {"uint8", IndexType::u8}};
  return lookup(names, py::str(target.dtype()));
}

// How an array [N, C, *spatial] lies, its spatial axes merged where they can be or left as they
// are. Any map may also be called strided.
inline ClassMap class_map(const py::array& a, bool as_strided, bool merges = true) {
  constexpr int kMaxAxes = 5;
  if (a.ndim() < 2 || a.ndim() > kMaxAxes) throw std::invalid_argument("expected [N, C, *spatial]");
  const auto stride = [&](py::ssize_t axis) { return a.strides(axis) / a.itemsize(); };
  ClassMap map{};
  map.images = a.shape(0);
  map.classes = a.shape(1);
  map.image_stride = stride(0);
  map.class_stride = stride(1);
  map.pixels = 1;
  for (int axis = 0; axis < 3; axis++) map.size[axis] = 1;
  for (py::ssize_t axis = a.ndim() - 1, i = 2; axis >= 2; axis--, i--) {
    map.size[i] = a.shape(axis);
    map.stride[i] = stride(axis);
    map.pixels *= a.shape(axis);
  }
  const auto merges_into = [&](int64_t pixel_stride) {
    int64_t expected = pixel_stride;
    for (int i = 2; i >= 0; i--) {
      if (map.size[i] != 1 && map.stride[i] != expected) return false;
      expected *= map.size[i];
    }
    return true;
  };
  const bool planar = merges_into(1);
  const bool channels_last = map.class_stride == 1 && merges_into(map.classes);
  if (as_strided || (!planar && !channels_last)) {
    map.layout = Layout::strided;
    return map;
  }
  map.layout = planar ? Layout::planar : Layout::channels_last;
  if (!merges) return map;
  for (int i = 0; i < 2; i++) {
    map.size[i] = 1;
    map.stride[i] = 0;
  }
  map.size[2] = map.pixels;
  map.stride[2] = planar ? 1 : map.classes;
  return map;
}

// Keyword arguments, each of which must be asked for.
class Fields {
 public:
  explicit Fields(const py::kwargs& values) : values_(values) {
    for (const auto& item : values) unused_.insert(py::cast<std::string>(item.first));
  }
  void finish() const {
    if (!unused_.empty()) throw std::invalid_argument("unknown argument " + *unused_.begin());
  }
  std::optional<py::array> optional_array(const char* name) {
    unused_.erase(name);
    if (!values_.contains(name) || values_[name].is_none()) return std::nullopt;
    return py::cast<py::array>(values_[name]);
  }
  py::array array(const char* name) { return py::cast<py::array>(required(name)); }
  template <class T>
  T value(const char* name) {
    return py::cast<T>(required(name));
  }
  template <class T>
  T value(const char* name, T otherwise) {
    unused_.erase(name);
    return values_.contains(name) ? py::cast<T>(values_[name]) : otherwise;
  }
  // The address of a contiguous array, null where there is none.
  template <class T = void>
  T* contiguous(const char* name) {
    const std::optional<py::array> a = optional_array(name);
    if (!a) return nullptr;
    if ((a->flags() & py::array::c_style) == 0) {
      throw std::invalid_argument(std::string(name) + " is not contiguous");
    }
    return static_cast<T*>(const_cast<void*>(a->data()));
  }

 private:
  py::object required(const char* name) {
    unused_.erase(name);
    if (!values_.contains(name)) throw std::invalid_argument(std::string("missing ") + name);
    return values_[name];
  }

  py::kwargs values_;
  std::set<std::string> unused_;
};

// Logits for results [N, *spatial], or [N, C, *spatial] with results_axis 2: interpolated to their
// size where align_corners is given.
template <class Params>
void set_pixels(Fields& fields, const py::array& logits, const py::array& results, int results_axis,
                Params& params) {
  const auto align_corners = fields.value<std::optional<bool>>("align_corners", std::nullopt);
  params.map = class_map(logits, fields.value("as_strided", false), !align_corners);
  if (!align_corners) return;
  params.interpolation = {true, {1, 1, 1}, *align_corners};
  for (py::ssize_t axis = results.ndim() - 1, i = 2; axis >= results_axis; axis--, i--) {
    params.interpolation.size[i] = results.shape(axis);
  }
}

}  // namespace segunc
