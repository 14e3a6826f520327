#include "csrkern/gather.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "csrkern/parallel.hpp"
#include "isa/kernels.hpp"

namespace csrkern {
namespace {

// Chunks of about 4 million multiply-adds: some 250 µs each, long compared with the cache misses
// of the first entries of a chunk.
int64_t grain(int64_t work_per_row) {
  return std::max<int64_t>(1, (1 << 22) / std::max<int64_t>(1, work_per_row));
}

}  // namespace

// All rows of a stripe of columns before the next stripe, which the shared cache holds rather than
// the whole table.
void gather_sum(const GatherSum& args, int num_threads) {
  check_latents(args.codes, num_threads);
  const int64_t columns = kGatherBytes / (args.dtype == DType::float32 ? 4 : 2);
  const int64_t rows = grain(args.codes.k * columns);
  const int64_t pieces = (args.codes.n + rows - 1) / rows;
  const int64_t stripes = (args.d + columns - 1) / columns;
  parallel_for(pieces * stripes, 1, num_threads, [&](int64_t index, int64_t, int) {
    const int64_t begin = index % pieces * rows, column = index / pieces * columns;
    kernels().gather.sum(args, begin, std::min(begin + rows, args.codes.n), column,
                         std::min(column + columns, args.d));
  });
}

void gather_dot(const GatherDot& args, int num_threads) {
  for_checked_rows(args.codes, grain(args.codes.k * args.d), num_threads,
                   [&](int64_t begin, int64_t end) { kernels().gather.dot(args, begin, end); });
}

void scatter_sum(ScatterSum args, int num_threads) {
  check_postings({args.starts, args.rows, args.slots, nullptr}, args.n, args.k, args.dim,
                 args.entries);
  const int64_t entries = args.starts[args.dim];
  const int64_t per_latent = entries / std::max<int64_t>(1, args.dim);
  // The factors in the order of their use, which every tile of columns repeats.
  std::vector<std::unique_ptr<float[]>> in_order(args.num_sources);
  for (int q = 0; q < args.num_sources; ++q) in_order[q].reset(new float[entries]);
  parallel_for(entries, 1 << 14, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t place = args.rows[e] * args.k + args.slots[e];
      for (int q = 0; q < args.num_sources; ++q) in_order[q][e] = args.sources[q].scale[place];
    }
  });
  for (int q = 0; q < args.num_sources; ++q) args.sources[q].scale = in_order[q].get();

  // Rows of 256 columns that fill half of a 1 MB cache. Only float32 sums can be stored between
  // tiles, and storing them costs as much as a few entries.
  const int64_t rows = (1 << 19) / (1024 * args.num_sources);
  const bool pays = args.dtype == DType::float32 && per_latent * rows >= 16 * args.n;
  args.tile_rows = pays ? rows : args.n;
  const int64_t most = std::min<int64_t>(
      kScatterLatents, std::max<int64_t>(1, args.dim / (4 * std::max(num_threads, 1))));
  const int64_t piece =
      pays ? most : std::min(most, grain(args.d * (1 + args.num_sources * per_latent)));
  // The loop over columns is outermost, so that a narrow stripe of the sources stays in the shared
  // cache.
  const int64_t pieces = (args.dim + piece - 1) / piece;
  const int64_t stripes = (args.d + kScatterColumns - 1) / kScatterColumns;
  parallel_for(pieces * stripes, 1, num_threads, [&](int64_t index, int64_t, int) {
    const int64_t latent = index % pieces * piece, column = index / pieces * kScatterColumns;
    kernels().gather.scatter(args, latent, std::min(latent + piece, args.dim), column,
                             std::min(column + kScatterColumns, args.d));
  });
}

}  // namespace csrkern
