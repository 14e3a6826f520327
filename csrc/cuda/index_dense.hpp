// Scores hits by dense queries.
#pragma once

#include "index_arrays.hpp"

namespace csrkern::cuda {

// One thread per hit: the float32 sum over its latents, ascending, of the query's number times the
// stored value, plus the query's offset, divided by the document's norm. Gives the same bits as
// csrkern::search.
struct ScoreDense {
  static constexpr const char* kName = "score_dense";
  static constexpr int kThreads = 128;
  static constexpr int kPerProcessor = 8;

  IndexArrays index;
  Batch batch;           // its keys, sorted
  const float* dense;    // [n_queries, dim]
  const float* offsets;  // [n_queries], or null
  float* scores;         // [n_queries, top_k]

  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    threads.phase([&](uint32_t t) {
      const uint64_t hit = static_cast<uint64_t>(threads.index()) * kThreads + t;
      const uint32_t q = static_cast<uint32_t>(hit / batch.top_k);
      const uint32_t rank = static_cast<uint32_t>(hit % batch.top_k);
      if (q >= batch.n_queries) return;
      const uint64_t* keys = batch.keys + static_cast<uint64_t>(q) * batch.keys_pitch;
      scores[hit] =
          rank < batch.n_keys[q] ? score(q, doc_of(keys[rank])) : float_of(0xff800000);  // -inf
    });
  }

  CSRKERN_DEVICE float score(uint32_t q, uint32_t doc) const {
    const float* query = dense + static_cast<uint64_t>(q) * index.dim;
    float sum = 0;
    for (uint32_t e = index.starts[doc]; e < index.starts[doc + 1]; ++e) {
      sum += query[latent_at(index, e)] * value_at(index, e);
    }
    if (offsets != nullptr) sum += offsets[q];
    if (index.norms != nullptr) sum = index.norms[doc] > 0 ? sum / index.norms[doc] : 0;
    // NaN: an overflow of either sign met one of the other.
    return sum == sum ? sum : -static_cast<float>(kLargestFloat);
  }
};

}  // namespace csrkern::cuda
