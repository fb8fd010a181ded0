#pragma once
#include "../../common/device/device.h"
#include "../params.h"

namespace segunc::cuda {
void scale(const ScaleParams& params, device::Stream stream);
}
