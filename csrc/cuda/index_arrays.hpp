// The arrays of an index and of a batch of queries, as kernels see them.
#pragma once

#include "kernel.hpp"

namespace csrkern::cuda {

// Documents are divided into blocks. A list holds the postings of one latent in one block, in any
// order. A posting is a document's number within its block (16 bits) and its impact: the value as a
// fraction of the latent's largest value, rounded up, so that sums are never too small. With 16-bit
// impacts both are one word, impact << 16 | number. The forward index holds the codes by document,
// with ascending latents and the values as stored.
struct IndexArrays {
  uint32_t n_docs;
  int32_t dim;
  uint32_t block;  // documents a block
  uint32_t n_blocks;
  ValueType type;           // of values
  float unit;               // of squares; see index_values.hpp
  bool wide;                // latents are uint32, else uint16
  const uint32_t* starts;   // [n_docs + 1] entries before each document
  const void* latents;      // [entries]
  const void* values;       // [entries]
  const float* scales;      // [dim] the largest value of each latent, 0 if no document has it
  const uint32_t* offsets;  // [n_blocks * dim + 1] postings before each list
  const uint32_t* words;    // [entries], with 16-bit impacts
  const uint16_t* numbers;  // [entries], with 8-bit impacts
  const uint8_t* impacts;   // [entries], likewise
  const int64_t* ids;       // [n_docs] ascending, or null: first_id + document
  int64_t first_id;
  const float* norms;  // [n_docs], or null
};

CSRKERN_DEVICE uint32_t latent_at(const IndexArrays& index, uint32_t entry) {
  return index.wide ? static_cast<const uint32_t*>(index.latents)[entry]
                    : static_cast<const uint16_t*>(index.latents)[entry];
}

CSRKERN_DEVICE float value_at(const IndexArrays& index, uint32_t entry) {
  switch (index.type) {
    case ValueType::float16:
      return from_half(static_cast<const uint16_t*>(index.values)[entry]);
    case ValueType::float32:
      return static_cast<const float*>(index.values)[entry];
    default:
      return square(static_cast<const uint8_t*>(index.values)[entry], index.unit);
  }
}

CSRKERN_DEVICE const uint32_t* list_of(const IndexArrays& index, uint32_t block, int32_t latent) {
  return index.offsets + static_cast<uint64_t>(block) * index.dim + latent;
}

// Returns the impact of a value: at least value / scale * (2^bits - 1).
CSRKERN_DEVICE uint32_t impact_of(float value, float scale, int bits) {
  const uint32_t most = (1u << bits) - 1;
  const float exact = value / scale * static_cast<float>(most);
  const uint32_t above = static_cast<uint32_t>(exact * (1 + 0x1p-20f)) + 1;
  return above < most ? above : most;
}

struct Entry {
  int32_t latent;
  float value;
};

// The sums of a query count scores in steps of 1 / steps_per_score. The largest possible is 2^30.
struct QueryFacts {
  uint32_t n_entries;
  uint32_t excess;  // a sum exceeds the exact score by at most this
  double steps_per_score;
};

struct Batch {
  uint32_t n_queries;
  uint32_t slots;  // of each query
  uint32_t top_k;  // at most kMostHits
  uint32_t keys_pitch;
  float most_score;   // greater scores become this
  Entry* unsorted;    // [n_queries, slots] scratch
  Entry* entries;     // [n_queries, slots] by value descending, then by latent
  uint32_t* weights;  // [n_queries, slots] for an impact of 2^bits, rounded up
  QueryFacts* facts;  // [n_queries]
  uint32_t* bars;     // [n_queries] bits of the score that a hit must have; only raised
  uint32_t* n_keys;   // [n_queries]
  uint64_t* keys;     // [n_queries, keys_pitch] hits so far: see key_of
};

// Keys order hits: by score, then by lower document.
CSRKERN_DEVICE uint64_t key_of(uint32_t score_bits, uint32_t doc) {
  return static_cast<uint64_t>(score_bits) << 32 | static_cast<uint32_t>(~doc);
}
CSRKERN_DEVICE uint32_t score_bits_of(uint64_t key) { return static_cast<uint32_t>(key >> 32); }
CSRKERN_DEVICE uint32_t doc_of(uint64_t key) { return ~static_cast<uint32_t>(key); }

constexpr double kFullScale = 1 << 30;
// More than 2 * 2^-24, for the product and the sum of each entry.
constexpr double kRounding = 0x1p-22;
constexpr double kLargestFloat = 3.4028234663852886e38;
// Half of the smallest float, for each product and sum that may be subnormal.
constexpr double kSmallest = 0x1p-149;

CSRKERN_DEVICE uint32_t least_sum(double sum) {
  if (!(sum > 1)) return 1;
  return sum < 0x1p31 ? static_cast<uint32_t>(sum) : 1u << 31;
}

// Returns the least sum of a document whose float32 score is at least `score`.
//
// A float32 score of n products and sums is at most real * (1 + n kRounding / 2) + n kSmallest,
// and a sum is at least real * steps_per_score.
CSRKERN_DEVICE uint32_t threshold_of(const QueryFacts& facts, float score) {
  const double bound = score < kLargestFloat ? score : kLargestFloat;
  const double least = bound * (1 - facts.n_entries * kRounding) - facts.n_entries * kSmallest;
  return least_sum(least * facts.steps_per_score - 1);
}

// Returns the least sum of a document that scores no less than one whose sum is `sum`. The real
// score of the latter is at least (sum - excess) / steps_per_score, and both scores are rounded.
CSRKERN_DEVICE uint32_t threshold_below(const QueryFacts& facts, uint32_t sum) {
  double real = (static_cast<double>(sum) - facts.excess) / facts.steps_per_score;
  if (real > kLargestFloat) real = kLargestFloat;
  const double least =
      real * (1 - 2 * facts.n_entries * kRounding) - 2 * facts.n_entries * kSmallest;
  return least_sum(least * facts.steps_per_score - 1);
}

}  // namespace csrkern::cuda
