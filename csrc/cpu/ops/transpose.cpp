#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "csrkern/codes.hpp"
#include "csrkern/parallel.hpp"

namespace csrkern {

// A counting sort in two passes. Each chunk of rows counts its latents, a running sum over
// (latent, chunk) gives every chunk its own places, and each chunk writes in row order. So the
// lists are in row order for any number of chunks.
void transpose(const Codes& codes, int64_t* starts, int32_t* rows, int32_t* slots, float* values,
               int num_threads) {
  if (std::max(codes.n, codes.k) > std::numeric_limits<int32_t>::max()) {
    throw std::length_error("values: expected at most 2^31 - 1 rows and slots");
  }
  // A chunk costs a table of dim counts and pays from 16 Ki entries on.
  const int64_t entries = codes.n * codes.k;
  const int64_t chunks = std::max<int64_t>(
      1, std::min<int64_t>(num_threads, entries / std::max<int64_t>(16384, codes.dim)));
  const int64_t rows_per_chunk = (codes.n + chunks - 1) / chunks;
  std::vector<int64_t> next(chunks * codes.dim, 0);

  const auto each_entry = [&](int64_t chunk, auto&& visit) {
    const int64_t end = std::min((chunk + 1) * rows_per_chunk, codes.n);
    for (int64_t row = chunk * rows_per_chunk; row < end; ++row) {
      for (int64_t slot = 0; slot < codes.k; ++slot) {
        const int64_t i = row * codes.k + slot;
        if (codes.values[i] != 0) visit(row, slot, codes.indices[i], codes.values[i]);
      }
    }
  };
  check_latents(codes, num_threads);
  parallel_for(chunks, 1, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      int64_t* count = next.data() + chunk * codes.dim;
      each_entry(chunk, [&](int64_t, int64_t, int32_t latent, float) { ++count[latent]; });
    }
  });
  int64_t place = 0;
  for (int64_t latent = 0; latent < codes.dim; ++latent) {
    starts[latent] = place;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t count = next[chunk * codes.dim + latent];
      next[chunk * codes.dim + latent] = place;
      place += count;
    }
  }
  starts[codes.dim] = place;
  parallel_for(chunks, 1, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      int64_t* mine = next.data() + chunk * codes.dim;
      each_entry(chunk, [&](int64_t row, int64_t slot, int32_t latent, float value) {
        const int64_t i = mine[latent]++;
        rows[i] = static_cast<int32_t>(row);
        slots[i] = static_cast<int32_t>(slot);
        values[i] = value;
      });
    }
  });
}

}  // namespace csrkern
