#pragma once
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

}  // namespace segunc::probes
