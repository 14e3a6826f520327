// Codes for the tests, in arrays that end where memory ends.
#pragma once

#include <limits>
#include <vector>

#include "check.hpp"
#include "csrkern/codes.hpp"
#include "exact_memory.hpp"

namespace csrkern {

struct OwnedCodes {
  Exact<float> values;
  Exact<int32_t> indices;
  int64_t n, k, dim;

  Codes view() const { return {values.data(), indices.data(), n, k, dim}; }

  // The dense row i.
  std::vector<double> row(int64_t i) const {
    std::vector<double> dense(dim);
    for (int64_t s = i * k; s < (i + 1) * k; ++s) {
      if (values[s] != 0) dense[indices[s]] += values[s];
    }
    return dense;
  }
};

// Indices that no kernel may follow.
inline std::vector<int32_t> wild_latents(int64_t dim) {
  return {static_cast<int32_t>(dim), -1, 1 << 30, std::numeric_limits<int32_t>::max(),
          std::numeric_limits<int32_t>::min()};
}

// n codes of at most k distinct latents: some full (the last too), some short, some empty. Latent 0
// is in most, so that one list is long.
inline OwnedCodes random_codes(int64_t n, int64_t k, int64_t dim, uint64_t seed) {
  Random random(seed);
  OwnedCodes codes{Exact<float>(n * k), Exact<int32_t>(n * k), n, k, dim};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t used = i + 1 < n && random.below(4) == 0 ? random.below(k + 1) : k;
    std::vector<bool> taken(dim);
    for (int64_t s = 0; s < used; ++s) {
      int64_t latent = s == 0 && i % 4 != 0 ? 0 : random.below(dim);
      while (taken[latent]) latent = (latent + 1) % dim;
      taken[latent] = true;
      codes.indices[i * k + s] = static_cast<int32_t>(latent);
      codes.values[i * k + s] = 0.01f + random.positive();
    }
  }
  return codes;
}

// The same codes with wild indices in their empty slots, where an index means nothing.
inline OwnedCodes with_wild_padding(OwnedCodes codes) {
  const std::vector<int32_t> wild = wild_latents(codes.dim);
  for (int64_t e = 0; e < codes.n * codes.k; ++e) {
    if (codes.values[e] == 0) codes.indices[e] = wild[e % wild.size()];
  }
  return codes;
}

struct OwnedPostings {
  explicit OwnedPostings(const OwnedCodes& codes, int num_threads = 1)
      : starts(codes.dim + 1),
        rows(codes.n * codes.k, -1),
        slots(codes.n * codes.k, -1),
        values(codes.n * codes.k, std::nanf("")) {
    transpose(codes.view(), starts.data(), rows.data(), slots.data(), values.data(), num_threads);
  }

  Postings view() const { return {starts.data(), rows.data(), slots.data(), values.data()}; }

  Exact<int64_t> starts;
  Exact<int32_t> rows, slots;
  Exact<float> values;
};

// Checks that `use` throws, whatever the value, where a latent is out of range.
template <class Use>
void check_refused(const OwnedCodes& good, const Use& use) {
  for (int32_t latent : wild_latents(good.dim)) {
    for (float value : {1.0f, -1.0f, std::nanf(""), 0x1p-149f}) {
      for (int64_t slot : {int64_t{0}, good.n * good.k - 1}) {
        OwnedCodes codes = good;
        codes.values[slot] = value;
        codes.indices[slot] = latent;
        CHECK_THROWS(use(codes), std::out_of_range);
      }
    }
  }
}

}  // namespace csrkern
