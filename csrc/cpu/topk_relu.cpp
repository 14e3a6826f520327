#include "csrkern/topk_relu.hpp"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "csrkern/isa.hpp"
#include "csrkern/parallel.hpp"
#include "topk_relu_rows.hpp"

namespace csrkern {
namespace {

constexpr int kArrays = 7;

TopkReluRows rows_for(Isa isa) {
#ifdef CSRKERN_X86
  if (isa == Isa::avx512) return topk_relu_rows_avx512;
  if (isa == Isa::avx2) return topk_relu_rows_avx2;
#endif
  (void)isa;
  return topk_relu_rows_portable;
}

// Enough entries for a row or, in a narrow one, for the smallest set of group maxima, plus a
// vector that compression may write past the end.
int64_t padded(int64_t h) { return std::max<int64_t>(h, 128) + 16; }

TopkScratch carve(int32_t* memory, int64_t h) {
  const int64_t step = padded(h);
  return {memory,
          memory + step,
          memory + 2 * step,
          memory + 3 * step,
          memory + 4 * step,
          memory + 5 * step,
          memory + 6 * step};
}

}  // namespace

void topk_relu(const TopkRelu& args, int num_threads) {
  const TopkReluRows rows = rows_for(isa());
  // About 256 KiB of input a piece: small enough to share out, large enough to stream.
  const int64_t grain = std::max<int64_t>(1, 65536 / args.h);
  std::vector<std::unique_ptr<int32_t[]>> memory(std::max(num_threads, 1));
  parallel_for(args.n, grain, num_threads, [&](int64_t begin, int64_t end, int thread) {
    auto& mine = memory[thread];
    if (!mine) mine.reset(new int32_t[kArrays * padded(args.h)]);
    rows(args, begin, end, carve(mine.get(), args.h));
  });
}

}  // namespace csrkern
