// One query's terms, its best hits so far, and bounds on what the blocks of an index can add.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "csrkern/float_bits.hpp"
#include "csrkern/index.hpp"
#include "isa/kernels.hpp"

namespace csrkern {

// A number that at least k of n scores, as bits, reach, and hardly more: by halving, without jumps
// that depend on data: less than half the time of std::nth_element for 64 scores.
inline uint32_t reached_by(const uint32_t* scores, int64_t n, int64_t k) {
  uint32_t low = 0, high = 0x7f800001;  // reached by k, and by fewer
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    int32_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      count += static_cast<int32_t>(scores[i]) >= static_cast<int32_t>(middle);
    }
    if (count == k) return middle;
    (count > k ? low : high) = middle;
  }
  return low;
}

struct Hit {
  float score;
  int64_t id;
  int64_t doc;  // its number among the documents of all segments
};

inline bool better(const Hit& a, const Hit& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// The best hits so far, and the bar that a score's bits must reach to matter.
class TopHits {
 public:
  // `in_order`: documents come by ascending id. `most`: what greater scores count as.
  TopHits(int64_t topk, bool in_order, float most) : topk_(topk), in_order_(in_order), most_(most) {
    hits_.reserve(std::min<int64_t>(topk, kRarely) + kRarely);
  }

  void add(float score, int64_t id, int64_t doc) { hits_.push_back({score, id, doc}); }

  // Drops what is not among the best topk and raises the bar.
  void settle() {
    if (!full()) return;
    std::nth_element(hits_.begin(), hits_.begin() + (topk_ - 1), hits_.end(), better);
    hits_.resize(topk_);
    settled_ = hits_.size();
    // A later document with a higher id loses every tie, so only a greater score matters.
    raise(bits_of(hits_.back().score) + (in_order_ ? 1 : 0));
  }

  // `settle`, once enough hits have come that it costs little for each.
  void settle_rarely() {
    if (hits_.size() >= settled_ + kRarely) settle();
  }

  void raise(uint32_t bar) { bar_ = std::max(bar_, bar); }
  // By a number that topk sums reach, which may be more than a score can be.
  void raise_by_sums(uint32_t bar) { raise(std::min(bar, bits_of(most_))); }
  uint32_t bar() const { return bar_; }
  // A bar that holds for documents of any number.
  uint32_t shared_bar() const { return full() ? bits_of(hits_.back().score) : 1; }
  bool full() const { return static_cast<int64_t>(hits_.size()) >= topk_; }
  int64_t topk() const { return topk_; }
  float most() const { return most_; }
  std::vector<Hit>& hits() { return hits_; }

 private:
  static constexpr size_t kRarely = 256;

  int64_t topk_;
  bool in_order_;
  float most_;
  size_t settled_ = 0;
  uint32_t bar_ = 1;  // any score above 0
  std::vector<Hit> hits_;
};

// Upper bounds on the score of any document of each block, in units of 1 / unit_.
class BlockBounds {
 public:
  // Queries of more terms are scanned: the sums below would lose their precision.
  static constexpr int kMostTerms = 1024;

  // `share`: of a bound that counts; below 1, blocks are left out that could hold a hit.
  void compute(const IndexView& view, const std::vector<QueryTerm>& terms, double share);

  // Appends blocks whose bounds are the largest, about `count` of them, and marks them done.
  void take_best(int64_t count, std::vector<int32_t>& blocks);
  // Writes the blocks that are not done and may hold a score of at least `bar` (as bits).
  void find(uint32_t bar, std::vector<int32_t>& blocks) const;

  bool done(int64_t block) const { return bounds_[block] == 0; }
  bool reaches(int64_t block, uint16_t least) const { return bounds_[block] >= least; }
  // The least bound of a block that may hold a score of at least `bar`.
  uint16_t least(uint32_t bar) const;

 private:
  int64_t n_blocks_ = 0;
  double unit_ = 1;
  double rounding_ = 0;
  double share_ = 1;
  std::vector<uint16_t> bounds_;  // 1 and more; 0: done
  std::vector<const uint8_t*> rows_;
  std::vector<uint16_t> weights_;
};

// Calls body(document, value) for each posting of a term in a window; its segments are known to
// be good.
template <class Body>
void each_posting(const IndexView& view, int64_t term, int64_t w, const Body& body) {
  const uint64_t* offset = view.offsets + term * view.n_windows + w;
  const uint64_t n = offset[1] - offset[0];
  const uint8_t* segment = view.segment(offset[0]);
  const float unit = view.unit();
  const int64_t base = w * view.window;
  for (uint64_t i = 0; i < n; ++i) {
    uint16_t id;
    std::memcpy(&id, segment + 2 * i, 2);
    body(base + id, value_at(segment + 2 * n, i, view.type, unit));
  }
}

// The same in all windows.
template <class Body>
void each_posting(const IndexView& view, int64_t term, const Body& body) {
  for (int64_t w = 0; w < view.n_windows; ++w) each_posting(view, term, w, body);
}

// For each term of `view` the maxima of its blocks, as multiples of a scale, rounded up.
void find_maxima(IndexView view, uint8_t* maxima, float* scales, int num_threads);

}  // namespace csrkern
