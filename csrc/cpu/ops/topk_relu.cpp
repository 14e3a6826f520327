#include "csrkern/topk_relu.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "csrkern/parallel.hpp"
#include "isa/kernels.hpp"

namespace csrkern {

void topk_relu(const TopkRelu& args, int num_threads) {
  const TopkReluRows rows = kernels().topk_relu;
  // Chunks of about 256 KiB of input: small enough to divide among threads, large enough to stream.
  const int64_t grain = std::max<int64_t>(1, 65536 / args.h);
  std::vector<std::unique_ptr<int32_t[]>> memory(std::max(num_threads, 1));
  parallel_for(args.n, grain, num_threads, [&](int64_t begin, int64_t end, int thread) {
    auto& mine = memory[thread];
    if (!mine) mine.reset(new int32_t[kTopkArrays * topk_entries(args.h)]);
    rows(args, begin, end, topk_scratch(mine.get(), args.h));
  });
}

}  // namespace csrkern
