// The signatures that the instruction-set files of gather share.
#pragma once

#include "csrkern/gather.hpp"

namespace csrkern {

struct GatherKernels {
  // Rows begin..end-1.
  void (*gather_sum)(const GatherSum& args, int64_t begin, int64_t end);
  // Rows begin..end-1.
  void (*gather_dot)(const GatherDot& args, int64_t begin, int64_t end);
  // Latents begin..end-1.
  void (*scatter_sum)(const ScatterSum& args, int64_t begin, int64_t end);
};

extern const GatherKernels kGatherPortable, kGatherAvx2, kGatherAvx512;

}  // namespace csrkern
