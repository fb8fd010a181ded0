// How a backend will compute a call.
#pragma once
#include <cstdint>
#include <functional>

namespace segunc {

// Made once a call, from sizes, layouts and which results are wanted; what it asks for is allocated
// before it is launched, with the same parameters but for the pointers to that. Where: a stream.
template <class Params, class... Where>
struct Plan {
  int64_t partials = 0;  // sums of the loss
  int64_t scratch_bytes = 0;
  std::function<void(const Params&, Where...)> launch = [](const Params&, Where...) {};
};

}  // namespace segunc
