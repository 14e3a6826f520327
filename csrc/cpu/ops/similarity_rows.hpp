// Scores of one row of codes with the postings of another set, for similarity and info_nce.
//
// The dense row of scores is computed in windows that fit in the L2 cache. Walking the postings of
// a row's latents costs one multiply-add for each pair of active entries, sum_l ca[l] * cb[l] in
// total. However skewed the latents are, this is at most the n * m * k of looking up every entry of
// b in a dense row of a, so that form is never better.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "csrkern/codes.hpp"

namespace csrkern {

// The postings of m rows, divided into windows of rows.
class Windows {
 public:
  Windows(const Postings& postings, int64_t dim, int64_t m)
      : postings_(postings), m_(m), count_(std::max<int64_t>(1, (m + kRows - 1) / kRows)) {
    if (count_ == 1) return;
    bounds_.resize(dim * count_ + 1);
    bounds_[dim * count_] = postings.starts[dim];
    int64_t p = postings.starts[0];
    for (int64_t latent = 0; latent < dim; ++latent) {
      for (int64_t w = 0; w < count_; ++w) {
        while (p < postings.starts[latent + 1] && postings.rows[p] < first(w)) ++p;
        bounds_[latent * count_ + w] = p;
      }
      p = postings.starts[latent + 1];
    }
  }

  // 64 KiB of scores. At m = 32,768 this is 1.6 times as fast as windows of 4096, which stay in the
  // L1 cache but make the slices of lists too short.
  static constexpr int64_t kRows = 16384;

  int64_t count() const { return count_; }
  int64_t first(int64_t w) const { return w * kRows; }
  int64_t size(int64_t w) const { return std::min(kRows, m_ - first(w)); }

  // scores[j] += the score of row i of a with row first(w) + j, by a's slots in order.
  void add_scores(const Codes& a, int64_t i, int64_t w, float* scores) const {
    const int32_t base = static_cast<int32_t>(first(w));
    each_list(a, i, w, [&](int64_t slot, int64_t begin, int64_t end) {
      const float value = a.values[i * a.k + slot];
      for (int64_t p = begin; p < end; ++p) {
        scores[postings_.rows[p] - base] += value * postings_.values[p];
      }
    });
  }

  // grad[slot] += sum_j scores[j] * (the value in row first(w) + j of the slot's latent).
  void add_gradient(const Codes& a, int64_t i, int64_t w, const float* scores, float* grad) const {
    const int32_t base = static_cast<int32_t>(first(w));
    each_list(a, i, w, [&](int64_t slot, int64_t begin, int64_t end) {
      const int32_t* rows = postings_.rows;
      const float* values = postings_.values;
      float sum[4] = {};  // independent chains: one addition takes several cycles
      int64_t p = begin;
      for (; p + 4 <= end; p += 4) {
        for (int c = 0; c < 4; ++c) sum[c] += scores[rows[p + c] - base] * values[p + c];
      }
      for (; p < end; ++p) sum[0] += scores[rows[p] - base] * values[p];
      grad[slot] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    });
  }

 private:
  template <class Visit>
  void each_list(const Codes& a, int64_t i, int64_t w, const Visit& visit) const {
    const int64_t* bounds = (count_ == 1 ? postings_.starts : bounds_.data()) + w;
    const float* values = a.values + i * a.k;
    const int32_t* latents = a.indices + i * a.k;
    for (int64_t slot = 0; slot < a.k; ++slot) {
      if (slot + 2 < a.k && values[slot + 2] != 0) prefetch(bounds[latents[slot + 2] * count_]);
      if (values[slot] == 0) continue;
      const int64_t* list = bounds + latents[slot] * count_;
      visit(slot, list[0], list[1]);
    }
  }

  // Prefetches the start of a list two slots ahead: add_scores takes a third less time.
  void prefetch(int64_t p) const {
    for (int64_t ahead : {0, 16}) {
      __builtin_prefetch(postings_.rows + p + ahead);
      __builtin_prefetch(postings_.values + p + ahead);
    }
  }

  Postings postings_;
  int64_t m_;
  int64_t count_;
  std::vector<int64_t> bounds_;  // [dim * count + 1], row-major; empty for one window
};

}  // namespace csrkern
