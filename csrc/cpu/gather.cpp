#include "csrkern/gather.hpp"

#include <algorithm>

#include "csrkern/isa.hpp"
#include "csrkern/parallel.hpp"
#include "gather_kernels.hpp"

namespace csrkern {
namespace {

const GatherKernels& kernels() {
#ifdef CSRKERN_X86
  if (isa() == Isa::avx512) return kGatherAvx512;
  if (isa() == Isa::avx2) return kGatherAvx2;
#endif
  return kGatherPortable;
}

// Pieces of about 64 Ki multiply-adds: some 10 µs each.
int64_t grain(int64_t work_per_row) {
  return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, work_per_row));
}

}  // namespace

void gather_sum(const GatherSum& args, int num_threads) {
  parallel_for(args.codes.n, grain(args.codes.k * args.d), num_threads,
               [&](int64_t begin, int64_t end, int) { kernels().gather_sum(args, begin, end); });
}

void gather_dot(const GatherDot& args, int num_threads) {
  parallel_for(args.codes.n, grain(args.codes.k * args.d), num_threads,
               [&](int64_t begin, int64_t end, int) { kernels().gather_dot(args, begin, end); });
}

void scatter_sum(const ScatterSum& args, int num_threads) {
  const int64_t entries = args.starts[args.dim];
  const int64_t per_latent =
      args.d * (1 + args.num_sources * entries / std::max<int64_t>(1, args.dim));
  parallel_for(args.dim, grain(per_latent), num_threads,
               [&](int64_t begin, int64_t end, int) { kernels().scatter_sum(args, begin, end); });
}

}  // namespace csrkern
