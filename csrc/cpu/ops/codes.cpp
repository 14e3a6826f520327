#include "csrkern/codes.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrkern/parallel.hpp"

namespace csrkern {
namespace {

constexpr int64_t kRowsAtOnce = 4096;
// 128 KB, which fit in the L2 cache: entries are read twice, to be checked and to be used.
constexpr int64_t kEntriesAtOnce = 1 << 14;

// Returns a limit that all latents in range are below: int32 has at most 2^31 of them.
uint32_t latent_limit(int64_t dim) {
  return static_cast<uint32_t>(std::min<int64_t>(dim, int64_t{1} << 31));
}

// Has no branch, so that the compiler vectorizes it: 0.2 ns an entry. The sign of
// `latent | last - latent` is set if a latent is below 0 or above `last`.
bool good_latents(const float* values, const int32_t* indices, int64_t n, uint32_t limit) {
  const uint32_t last = limit - 1;
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto latent = static_cast<uint32_t>(indices[i]);
    bad |= (latent | (last - latent)) & (values[i] != 0 ? ~0u : 0u);
  }
  return bad >> 31 == 0;
}

// Returns whether a row is valid. `seen` has a bit for each latent, all 0 before and after.
bool good_row(const float* values, const int32_t* indices, int64_t k, uint32_t limit,
              uint64_t* seen) {
  bool good = true;
  int64_t active = 0;
  for (; active < k && values[active] != 0; ++active) {
    const float value = values[active];
    const auto latent = static_cast<uint32_t>(indices[active]);
    if (latent >= limit || value < 0) break;
    if (active > 0) {
      const float before = values[active - 1];
      const bool falls = before > value || (before != before && value == value);
      const bool ties = before == value && indices[active - 1] < indices[active];
      if (!falls && !ties && !(before != before && value != value)) break;
    }
    uint64_t& word = seen[latent / 64];
    const uint64_t bit = uint64_t{1} << (latent % 64);
    if (word & bit) break;
    word |= bit;
  }
  for (int64_t s = active; s < k; ++s) good &= values[s] == 0 && indices[s] == 0;
  for (int64_t s = 0; s < active; ++s) seen[static_cast<uint32_t>(indices[s]) / 64] = 0;
  return good;
}

}  // namespace

int64_t first_invalid(const Codes& codes, int num_threads) {
  const uint32_t limit = latent_limit(codes.dim);
  std::atomic<int64_t> first{codes.n};
  parallel_for(codes.n, kRowsAtOnce, num_threads, [&](int64_t begin, int64_t end, int) {
    std::vector<uint64_t> seen(limit / 64 + 1);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * codes.k;
      if (good_row(codes.values + at, codes.indices + at, codes.k, limit, seen.data())) continue;
      int64_t known = first.load();
      while (i < known && !first.compare_exchange_weak(known, i)) {
      }
      return;
    }
  });
  return first;
}

void for_checked_rows(const Codes& codes, int64_t grain, int num_threads,
                      const std::function<void(int64_t begin, int64_t end)>& body) {
  const uint32_t limit = latent_limit(codes.dim);
  const int64_t step = std::max<int64_t>(1, kEntriesAtOnce / std::max<int64_t>(1, codes.k));
  std::atomic<bool> good{true};
  parallel_for(codes.n, grain, num_threads, [&](int64_t first, int64_t last, int) {
    for (int64_t begin = first, end; begin < last; begin = end) {
      end = std::min(begin + step, last);
      const int64_t at = begin * codes.k;
      if (!good_latents(codes.values + at, codes.indices + at, end * codes.k - at, limit)) {
        good.store(false, std::memory_order_relaxed);
        return;
      }
      body(begin, end);
    }
  });
  if (good.load(std::memory_order_relaxed)) return;
  const int64_t n = codes.n * codes.k;
  int64_t i = 0;
  while (i + 1 < n && good_latents(codes.values + i, codes.indices + i, 1, limit)) ++i;
  throw std::out_of_range("indices: expected 0 <= latent < dim = " + std::to_string(codes.dim) +
                          ", got " + std::to_string(codes.indices[i]) + " in row " +
                          std::to_string(i / codes.k) +
                          "; codes.validate() checks codes that come from elsewhere");
}

void check_latents(const Codes& codes, int num_threads) {
  for_checked_rows(codes, kRowsAtOnce, num_threads, [](int64_t, int64_t) {});
}

void check_postings(const Postings& postings, int64_t n, int64_t k, int64_t dim, int64_t entries) {
  bool good = postings.starts[0] == 0;
  for (int64_t latent = 0; latent < dim; ++latent) {
    good &= postings.starts[latent] <= postings.starts[latent + 1];
  }
  const int64_t used = postings.starts[dim];
  good &= used <= entries;
  if (good) {
    for (int64_t e = 0; e < used; ++e) {
      good &= static_cast<uint32_t>(postings.rows[e]) < static_cast<uint64_t>(n);
      good &= static_cast<uint32_t>(postings.slots[e]) < static_cast<uint64_t>(k);
    }
  }
  if (!good) throw std::out_of_range("starts, rows and slots: expected what transpose returns");
}

}  // namespace csrkern
