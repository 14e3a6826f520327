// The signatures that the instruction-set files of gather share.
#pragma once

#include "csrkern/gather.hpp"

namespace csrkern {

// The most in a piece of scatter_sum.
constexpr int64_t kScatterLatents = 512;
constexpr int64_t kScatterColumns = 256;

struct GatherKernels {
  // Rows begin..end-1.
  void (*gather_sum)(const GatherSum& args, int64_t begin, int64_t end);
  // Rows begin..end-1.
  void (*gather_dot)(const GatherDot& args, int64_t begin, int64_t end);
  // Some latents and columns; the scale of a source is that of each posting.
  void (*scatter_sum)(const ScatterSum& args, int64_t begin, int64_t end, int64_t first_column,
                      int64_t last_column);
};

extern const GatherKernels kGatherPortable, kGatherAvx2, kGatherAvx512;

}  // namespace csrkern
