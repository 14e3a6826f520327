#include "csrkern/encode.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "csrkern/parallel.hpp"
#include "isa/kernels.hpp"

namespace csrkern {

void linear_exact(const Linear& layer, float* out, int num_threads) {
  const std::vector<double> x64(layer.x, layer.x + layer.n * layer.d);
  parallel_for(layer.h, 256, num_threads, [&](int64_t begin, int64_t end, int) {
    kernels().encode.linear_exact(layer, x64.data(), begin, end, out);
  });
}

void round_rows(const Rounding& args, int num_threads) {
  parallel_for(args.n, 64, num_threads, [&](int64_t begin, int64_t end, int) {
    kernels().encode.round_rows(args, begin, end);
  });
}

void refine(const Refine& args, int num_threads) {
  struct Scratch {
    explicit Scratch(const Linear& layer)
        : topk(new int32_t[kTopkArrays * topk_entries(layer.h)]), x64(layer.d) {}
    std::unique_ptr<int32_t[]> topk;
    std::vector<double> x64;
  };
  std::vector<std::unique_ptr<Scratch>> scratch(std::max(num_threads, 1));
  parallel_for(args.layer.n, 8, num_threads, [&](int64_t begin, int64_t end, int thread) {
    auto& mine = scratch[thread];
    if (!mine) mine = std::make_unique<Scratch>(args.layer);
    kernels().encode.refine(args, begin, end, topk_scratch(mine->topk.get(), args.layer.h),
                            mine->x64.data());
  });
}

}  // namespace csrkern
