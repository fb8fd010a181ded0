#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace segunc::probes {

// Small kernels, each with one deliberate bug, and their correct versions: they show what the host
// execution notices.
std::vector<std::string> names();
// data: [kDataSize], a kernel's only input and output.
constexpr int kDataSize = 4096;
void run(const std::string& name, bool correct, int32_t* data);

// Launches a kernel that has kStaticBytes of static shared memory, which it uses where `reaches`.
constexpr int kStaticBytes = 40 << 10;
void launch_of_shape(int64_t blocks, unsigned threads, size_t dynamic_shared_bytes, bool reaches);

}  // namespace segunc::probes
