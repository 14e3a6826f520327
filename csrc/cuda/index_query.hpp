// Prepares a batch of queries: the order of entries, and the steps in which scores are counted.
#pragma once

#include "index_arrays.hpp"

namespace csrkern::cuda {

CSRKERN_DEVICE float number_at(Number type, const void* values, uint64_t i) {
  if (type == Number::float32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  return type == Number::float16 ? from_half(bits) : float_of(static_cast<uint32_t>(bits) << 16);
}

// Orders by value descending, then by latent; equal entries by slot.
CSRKERN_DEVICE bool comes_before(Entry a, uint32_t slot_a, Entry b, uint32_t slot_b) {
  if (a.value != b.value) return a.value > b.value;
  if (a.latent != b.latent) return a.latent < b.latent;
  return slot_a < slot_b;
}

// One thread block per query: sorts its entries, L2-normalizes them if `normalize`, and finds the
// steps of its sums. Gives the same bits as csrkern::read_query.
struct PrepareQueries {
  static constexpr const char* kName = "prepare_queries";
  static constexpr int kThreads = 128;
  static constexpr int kPerProcessor = 8;

  IndexArrays index;
  Batch batch;
  Number type;
  const void* values;      // [n_queries, slots]
  const int32_t* indices;  // [n_queries, slots]
  uint32_t query_k;
  uint32_t least_score;  // bits
  int32_t impact_bits;
  bool normalize;

  struct Shared {
    uint32_t n;
    uint32_t used;
    double scale;
    double partial[kThreads];
  };

  CSRKERN_DEVICE bool read(uint64_t slot, Entry* entry) const {
    entry->latent = indices[slot];
    entry->value = number_at(type, values, slot);
    return static_cast<uint32_t>(entry->latent) < static_cast<uint32_t>(index.dim) &&
           entry->value > 0 && entry->value <= kLargestFloat;
  }

  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    Shared& shared = *threads.shared<Shared>();
    const uint32_t q = threads.index();
    const uint64_t first = static_cast<uint64_t>(q) * batch.slots;
    Entry* unsorted = batch.unsorted + first;
    Entry* entries = batch.entries + first;
    threads.phase([&](uint32_t t) {
      if (t == 0) shared.n = shared.used = 0;
    });
    Entry* sorted = normalize ? unsorted : entries;
    threads.phase([&](uint32_t t) {
      for (uint32_t i = t; i < batch.slots; i += kThreads) {
        Entry mine, other;
        if (!read(first + i, &mine)) continue;
        uint32_t rank = 0;
        for (uint32_t j = 0; j < batch.slots; ++j) {
          rank += read(first + j, &other) && comes_before(other, j, mine, i);
        }
        sorted[rank] = mine;
        atomic_add(&shared.n, 1u);
      }
    });
    const uint32_t n = shared.n < query_k ? shared.n : query_k;
    if (normalize) {
      threads.phase([&](uint32_t t) {
        if (t != 0) return;
        double square = 0;
        for (uint32_t i = 0; i < n; ++i) {
          square += static_cast<double>(sorted[i].value) * sorted[i].value;
        }
        shared.scale = square > 0 ? 1 / sqrt(square) : 0;
      });
      // Different values may have become equal, or 0.
      threads.phase([&](uint32_t t) {
        for (uint32_t i = t; i < n; i += kThreads) {
          const Entry mine = scaled(sorted[i], shared.scale);
          uint32_t rank = 0;
          for (uint32_t j = 0; j < n; ++j) {
            rank += comes_before(scaled(sorted[j], shared.scale), j, mine, i);
          }
          entries[rank] = mine;
          if (mine.value > 0) atomic_add(&shared.used, 1u);
        }
      });
    }
    const uint32_t used = normalize ? shared.used : n;
    threads.phase([&](uint32_t t) {
      double sum = 0;
      for (uint32_t i = t; i < used; i += kThreads) sum += largest_product(entries[i]);
      shared.partial[t] = sum;
    });
    threads.phase([&](uint32_t t) {
      if (t != 0) return;
      double sum = 0;
      for (int i = 0; i < kThreads; ++i) sum += shared.partial[i];
      // An impact is too large by at most 1.3e-6 of itself and one; a product by at most 3 steps.
      const double steps = kFullScale / (1 << impact_bits);
      QueryFacts& facts = batch.facts[q];
      facts.n_entries = sum > 0 ? used : 0;
      facts.steps_per_score = sum > 0 ? kFullScale / sum : 0;
      facts.excess = static_cast<uint32_t>(kFullScale * 1.3e-6 + 1.01 * steps + 4.0 * used + 16);
      batch.bars[q] = least_score;
      batch.n_keys[q] = 0;
    });
    threads.phase([&](uint32_t t) {
      const double most = static_cast<double>((1 << impact_bits) - 1);
      const double unit =
          batch.facts[q].steps_per_score * ((1 << impact_bits) / most) * (1 + 1e-12);
      for (uint32_t i = t; i < used; i += kThreads) {
        const double product = largest_product(entries[i]);
        batch.weights[first + i] = product > 0 ? static_cast<uint32_t>(product * unit) + 1 : 0;
      }
    });
  }

  CSRKERN_DEVICE static Entry scaled(Entry entry, double scale) {
    return {entry.latent, static_cast<float>(entry.value * scale)};
  }

  CSRKERN_DEVICE double largest_product(Entry entry) const {
    return static_cast<double>(entry.value) * index.scales[entry.latent];
  }
};

}  // namespace csrkern::cuda
