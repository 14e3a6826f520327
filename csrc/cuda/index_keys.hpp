// The best hits of a thread block, in its shared memory.
#pragma once

#include "index_arrays.hpp"

namespace csrkern::cuda {

// Candidates that are scored at once; keys have room for this many more than `top_k`.
constexpr uint32_t kTile = 512;

CSRKERN_BOTH constexpr uint32_t key_capacity(uint32_t top_k) { return top_k <= 512 ? 1024 : 2048; }

struct TopKeys {
  uint32_t n;
  uint32_t bar;  // bits of the score that a key must have
};

CSRKERN_DEVICE void push_key(TopKeys& top, uint64_t* keys, uint64_t key) {
  if (score_bits_of(key) >= top.bar) keys[atomic_add(&top.n, 1u)] = key;
}

// So few keys are counted, not sorted: 2 barriers, where a sort of 128 has 28.
constexpr uint32_t kCounted = 128;

// Sorts n distinct keys, descending, in memory for the next power of two and for 2 kCounted.
template <int kThreads>
CSRKERN_DEVICE void sort_keys(ThreadBlock& threads, uint64_t* keys, uint32_t n) {
  if (n <= kCounted) {
    threads.phase([&](uint32_t t) {
      if (t >= n) return;
      const uint64_t mine = keys[t];
      uint32_t rank = 0;
      CSRKERN_UNROLL
      for (uint32_t i = 0; i < n; ++i) rank += keys[i] > mine;
      keys[kCounted + rank] = mine;
    });
    threads.phase([&](uint32_t t) {
      if (t < n) keys[t] = keys[kCounted + t];
    });
    return;
  }
  uint32_t size = 1;
  while (size < n) size *= 2;
  threads.phase([&](uint32_t t) {
    for (uint32_t i = n + t; i < size; i += kThreads) keys[i] = 0;
  });
  for (uint32_t run = 2; run <= size; run *= 2) {
    for (uint32_t stride = run / 2; stride > 0; stride /= 2) {
      threads.phase([&](uint32_t t) {
        for (uint32_t pair = t; pair < size / 2; pair += kThreads) {
          const uint32_t below = pair & (stride - 1);
          const uint32_t i = 2 * (pair - below) + below;
          const uint64_t a = keys[i], b = keys[i + stride];
          if (((i & run) == 0) == (a < b)) {
            keys[i] = b;
            keys[i + stride] = a;
          }
        }
      });
    }
  }
}

// If there are top_k keys, keeps the best of them, sorted, and raises the bar to the last.
template <int kThreads>
CSRKERN_DEVICE void keep_best(ThreadBlock& threads, TopKeys& top, uint64_t* keys, uint32_t top_k) {
  const uint32_t n = threads.uniform(top.n);
  if (n < top_k) return;
  sort_keys<kThreads>(threads, keys, n);
  threads.phase([&](uint32_t t) {
    if (t != 0) return;
    top.n = top_k;
    top.bar = score_bits_of(keys[top_k - 1]);
  });
}

// One thread block per query: replaces its keys with the best of them. The last call also writes
// the results.
struct MergeKeys {
  static constexpr const char* kName = "merge_keys";
  static constexpr int kThreads = 512;
  static constexpr int kPerProcessor = 2;

  Batch batch;
  const int64_t* doc_ids;  // as IndexArrays::ids
  int64_t first_id;
  float* scores;  // [n_queries, top_k], or null: not yet
  int64_t* ids;

  static size_t shared_bytes(uint32_t top_k) {
    return sizeof(uint64_t) * (key_capacity(top_k) + 1);
  }

  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    TopKeys& top = *threads.shared<TopKeys>();
    uint64_t* keys = threads.shared<uint64_t>(sizeof(uint64_t));
    const uint32_t q = threads.index();
    uint64_t* found = batch.keys + static_cast<uint64_t>(q) * batch.keys_pitch;
    const uint32_t n_found = batch.n_keys[q];
    threads.phase([&](uint32_t t) {
      if (t == 0) top = {0, batch.bars[q]};
    });
    for (uint32_t begin = 0; begin < n_found; begin += kTile) {
      threads.phase([&](uint32_t t) {
        for (uint32_t i = begin + t; i < n_found && i < begin + kTile; i += kThreads) {
          push_key(top, keys, found[i]);
        }
      });
      keep_best<kThreads>(threads, top, keys, batch.top_k);
    }
    const uint32_t n = threads.uniform(top.n);
    if (n < batch.top_k) sort_keys<kThreads>(threads, keys, n);
    threads.phase([&](uint32_t t) {
      if (t == 0) {
        batch.n_keys[q] = n;
        batch.bars[q] = top.bar;
      }
      for (uint32_t i = t; i < n; i += kThreads) found[i] = keys[i];
      if (scores == nullptr) return;
      for (uint32_t i = t; i < batch.top_k; i += kThreads) {
        const uint64_t out = static_cast<uint64_t>(q) * batch.top_k + i;
        const uint32_t doc = i < n ? doc_of(keys[i]) : 0;
        scores[out] = i < n ? float_of(score_bits_of(keys[i])) : float_of(0xff800000);
        ids[out] = i >= n ? -1 : doc_ids == nullptr ? first_id + doc : doc_ids[doc];
      }
    });
  }
};

}  // namespace csrkern::cuda
