// Prepares a batch of queries: the order of entries, and the steps in which scores are counted.
#pragma once

#include "index_arrays.hpp"

namespace csrkern::cuda {

CSRKERN_DEVICE float number_at(Number type, const void* values, uint64_t i) {
  if (type == Number::float32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  return type == Number::float16 ? from_half(bits) : float_of(static_cast<uint32_t>(bits) << 16);
}

// One thread block per query: sorts its entries, L2-normalizes them if `normalize`, and finds the
// steps of its sums. Gives the same bits as csrkern::read_query.
struct PrepareQueries {
  static constexpr const char* kName = "prepare_queries";
  static constexpr int kThreads = 128;
  static constexpr int kPerProcessor = 6;
  static constexpr uint32_t kStaged = 512;  // entries that are brought to shared memory at once

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
    double steps_per_score;
    double partial[kThreads];
    uint32_t ranks[kThreads];
    uint64_t staged[kStaged];  // by value descending, then by latent: see key_of
  };

  // Returns an entry, of value 0 if it is not valid.
  CSRKERN_DEVICE Entry read(uint64_t slot) const {
    const Entry entry{indices[slot], number_at(type, values, slot)};
    const bool valid = static_cast<uint32_t>(entry.latent) < static_cast<uint32_t>(index.dim) &&
                       entry.value > 0 && entry.value <= kLargestFloat;
    return valid ? entry : Entry{entry.latent, 0};
  }

  // Calls body(thread, first, n) for every part of n keys that fits, in order, with key(first) and
  // those that follow in `staged`. A loop over global memory would wait for each of them.
  template <class Read, class Body>
  CSRKERN_DEVICE static void in_stages(ThreadBlock& threads, Shared& shared, uint32_t n,
                                       const Read& key, const Body& body) {
    for (uint32_t first = 0; first < n; first += kStaged) {
      const uint32_t part = n - first < kStaged ? n - first : kStaged;
      threads.phase([&](uint32_t t) {
        for (uint32_t i = t; i < part; i += kThreads) shared.staged[i] = key(first + i);
      });
      threads.phase([&](uint32_t t) { body(t, first, part); });
    }
  }

  // Calls put(entry, rank) for each of n keys: the greatest has rank 0, of equal ones the first.
  template <class Read, class Put>
  CSRKERN_DEVICE static void sort(ThreadBlock& threads, Shared& shared, uint32_t n, const Read& key,
                                  const Put& put) {
    for (uint32_t begin = 0; begin < n; begin += kThreads) {
      in_stages(threads, shared, n, key, [&](uint32_t t, uint32_t first, uint32_t part) {
        const uint32_t i = begin + t;
        if (i >= n) return;
        const uint64_t mine = i - first < part ? shared.staged[i - first] : key(i);
        uint32_t rank = first == 0 ? 0 : shared.ranks[t];
        CSRKERN_UNROLL
        for (uint32_t j = 0; j < part; ++j) {
          const uint64_t other = shared.staged[j];
          rank += other > mine || (other == mine && first + j < i);
        }
        shared.ranks[t] = rank;
        if (first + part == n) put(entry_of(mine), rank);
      });
    }
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
    const auto given = [&](uint32_t i) { return key_of(read(first + i)); };
    sort(threads, shared, batch.slots, given, [&](Entry mine, uint32_t rank) {
      if (mine.value == 0) return;
      sorted[rank] = mine;
      atomic_add(&shared.n, 1u);
    });
    const uint32_t n = shared.n < query_k ? shared.n : query_k;
    if (normalize) {
      const auto best = [&](uint32_t i) { return key_of(sorted[i]); };
      in_stages(threads, shared, n, best, [&](uint32_t t, uint32_t begin, uint32_t part) {
        if (t != 0) return;
        double square = begin == 0 ? 0 : shared.scale;
        CSRKERN_UNROLL
        for (uint32_t i = 0; i < part; ++i) {
          const double value = entry_of(shared.staged[i]).value;
          square += value * value;
        }
        if (begin + part == n) square = square > 0 ? 1 / sqrt(square) : 0;
        shared.scale = square;
      });
      // Different values may have become equal, or 0.
      const auto unit = [&](uint32_t i) { return key_of(scaled(sorted[i], shared.scale)); };
      sort(threads, shared, n, unit, [&](Entry mine, uint32_t rank) {
        entries[rank] = mine;
        if (mine.value > 0) atomic_add(&shared.used, 1u);
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
      const uint32_t partials = used < kThreads ? used : kThreads;
      CSRKERN_UNROLL
      for (uint32_t i = 0; i < partials; ++i) sum += shared.partial[i];
      // An impact is too large by at most 1.3e-6 of itself and one; a product by at most 3 steps.
      const double steps = kFullScale / (1 << impact_bits);
      QueryFacts& facts = batch.facts[q];
      facts.n_entries = sum > 0 ? used : 0;
      facts.steps_per_score = shared.steps_per_score = sum > 0 ? kFullScale / sum : 0;
      facts.excess = static_cast<uint32_t>(kFullScale * 1.3e-6 + 1.01 * steps + 4.0 * used + 16);
      batch.bars[q] = least_score;
      batch.n_keys[q] = 0;
    });
    threads.phase([&](uint32_t t) {
      const double most = static_cast<double>((1 << impact_bits) - 1);
      const double unit = shared.steps_per_score * ((1 << impact_bits) / most) * (1 + 1e-12);
      for (uint32_t i = t; i < used; i += kThreads) {
        const double product = largest_product(entries[i]);
        batch.weights[first + i] = product > 0 ? static_cast<uint32_t>(product * unit) + 1 : 0;
      }
    });
  }

  CSRKERN_DEVICE static uint64_t key_of(Entry entry) {
    return cuda::key_of(bits_of(entry.value), entry.latent);
  }
  CSRKERN_DEVICE static Entry entry_of(uint64_t key) {
    return {static_cast<int32_t>(doc_of(key)), float_of(score_bits_of(key))};
  }

  CSRKERN_DEVICE static Entry scaled(Entry entry, double scale) {
    return {entry.latent, static_cast<float>(entry.value * scale)};
  }

  CSRKERN_DEVICE double largest_product(Entry entry) const {
    return static_cast<double>(entry.value) * index.scales[entry.latent];
  }
};

}  // namespace csrkern::cuda
