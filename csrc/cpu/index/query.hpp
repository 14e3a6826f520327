// One query's best hits so far, and bounds on the scores in each block of documents.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "csrkern/float_bits.hpp"
#include "csrkern/index.hpp"
#include "isa/kernels.hpp"

namespace csrkern {

// Returns a threshold that at least k of n >= k keys reach: exactly k, or, if it is a key of
// several, a few more. A binary search without branches on data: less than half the time of
// std::nth_element for 64 keys.
inline int32_t reached_by(const int32_t* keys, int64_t n, int64_t k) {
  int32_t least = std::numeric_limits<int32_t>::max(), most = std::numeric_limits<int32_t>::min();
  for (int64_t i = 0; i < n; ++i) {
    least = std::min(least, keys[i]);
    most = std::max(most, keys[i]);
  }
  // Reached by k, and by fewer.
  int64_t low = least, high = int64_t{most} + 1;
  while (high - low > 1) {
    const auto middle = static_cast<int32_t>(low + (high - low) / 2);
    int32_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += keys[i] >= middle;
    if (count == k) return middle;
    (count > k ? low : high) = middle;
  }
  return static_cast<int32_t>(low);
}

// The same of scores as bits, none negative.
inline uint32_t reached_by(const uint32_t* scores, int64_t n, int64_t k) {
  return static_cast<uint32_t>(reached_by(reinterpret_cast<const int32_t*>(scores), n, k));
}

struct Hit {
  float score;
  int64_t id;
  int64_t doc;  // its number among the documents of all segments
};

inline bool better(const Hit& a, const Hit& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// Writes the first of sorted hits, at most top_k; missing places hold (-inf, -1).
inline void write_out(const std::vector<Hit>& hits, int64_t top_k, float* scores, int64_t* ids) {
  const int64_t found = std::min<int64_t>(top_k, hits.size());
  for (int64_t i = 0; i < found; ++i) {
    scores[i] = hits[i].score;
    ids[i] = hits[i].id;
  }
  std::fill(scores + found, scores + top_k, -std::numeric_limits<float>::infinity());
  std::fill(ids + found, ids + top_k, -1);
}

// The best hits so far, and the bar: the bits that a score must reach to be among them.
class TopHits {
 public:
  // `in_order`: documents are added by ascending id. `most`: greater scores become this.
  TopHits(int64_t top_k, bool in_order, float most)
      : top_k_(top_k), in_order_(in_order), most_(most) {
    hits_.reserve(std::min<int64_t>(top_k, kRarely) + kRarely);
  }

  void add(float score, int64_t id, int64_t doc) { hits_.push_back({score, id, doc}); }

  // Drops all but the best top_k hits and raises the bar.
  void settle() {
    if (!full()) return;
    bits_.resize(hits_.size());
    for (size_t i = 0; i < hits_.size(); ++i) bits_[i] = bits_of(hits_[i].score);
    const uint32_t least = reached_by(bits_.data(), static_cast<int64_t>(bits_.size()), top_k_);
    last_ = std::numeric_limits<uint32_t>::max();
    size_t n = 0;
    for (size_t i = 0; i < bits_.size(); ++i) {
      hits_[n] = hits_[i];
      n += bits_[i] >= least ? 1 : 0;
      last_ = bits_[i] >= least ? std::min(last_, bits_[i]) : last_;
    }
    hits_.resize(n);
    if (static_cast<int64_t>(n) > top_k_) {  // of equal scores, those of the lowest ids
      std::nth_element(hits_.begin(), hits_.begin() + (top_k_ - 1), hits_.end(), better);
      hits_.resize(top_k_);
    }
    settled_ = hits_.size();
    // A later document with a higher id loses every tie, so its score must be greater.
    raise(last_ + (in_order_ ? 1 : 0));
  }

  // Settles if there are enough new hits that the cost for each is small.
  void settle_rarely() {
    if (hits_.size() >= settled_ + kRarely) settle();
  }

  void raise(uint32_t bar) { bar_ = std::max(bar_, bar); }
  // Raises to what top_k sums reach, which may be more than a score can be.
  void raise_by_sums(uint32_t bar) { raise(std::min(bar, bits_of(most_))); }
  uint32_t bar() const { return bar_; }
  // A bar for documents of any id.
  uint32_t shared_bar() const { return full() ? last_ : 1; }
  bool full() const { return static_cast<int64_t>(hits_.size()) >= top_k_; }
  int64_t top_k() const { return top_k_; }
  float most() const { return most_; }
  std::vector<Hit>& hits() { return hits_; }

 private:
  static constexpr size_t kRarely = 256;

  int64_t top_k_;
  bool in_order_;
  float most_;
  size_t settled_ = 0;
  uint32_t last_ = 1;  // of the hits, when they were settled
  uint32_t bar_ = 1;   // any score above 0
  std::vector<Hit> hits_;
  std::vector<uint32_t> bits_;
};

// Upper bounds on the scores in each block of documents, in steps of 1 / steps_per_score_.
class BlockBounds {
 public:
  // Queries of more terms are scanned: the bounds would lose their precision.
  static constexpr int kMostTerms = 1024;

  // `share`: factor on the bounds; below 1, blocks with a hit may be left out.
  void compute(const IndexView& view, const std::vector<QueryTerm>& terms, double share);

  // Writes about `count` blocks with the largest bounds and marks them done.
  void take_best(int64_t count, std::vector<int32_t>& blocks);
  // Writes the blocks that are not done and may contain a score of at least `bar` (as bits).
  void find(uint32_t bar, std::vector<int32_t>& blocks) const;

  bool done(int64_t block) const { return bounds_[block] == 0; }
  bool reaches(int64_t block, uint16_t least) const { return bounds_[block] >= least; }
  // Returns the least bound of a block that may contain a score of at least `bar`.
  uint16_t least(uint32_t bar) const;

 private:
  int64_t n_blocks_ = 0;
  double steps_per_score_ = 1;
  double rounding_ = 0;
  double share_ = 1;
  std::vector<uint16_t> bounds_;  // 1 and more; 0: done
  std::vector<const uint8_t*> rows_;
  std::vector<uint16_t> weights_;
};

// Returns local document number i of a slice.
inline uint16_t number_at(const uint8_t* ids, uint64_t i) {
  uint16_t id;
  std::memcpy(&id, ids + 2 * i, 2);
  return id;
}

// Calls body(number, ids, count) for each of the groups of a slice of n > 0 postings.
template <class Body>
void each_group(const uint8_t* slice, uint64_t n, const Body& body) {
  const GroupedSlice groups(slice, n);
  const uint8_t* ids = groups.ids();
  for (uint8_t number = 0; number < kGroups; ++number) {
    const uint32_t count = groups.count(number);
    body(number, ids, count);
    ids += 2 * count;
  }
}

// Calls body(document, stored value) for each posting of a term in a window. The slice must have
// been checked.
template <class Body>
void each_stored(const IndexView& view, int64_t term, int64_t w, const Body& body) {
  const uint64_t* offset = view.offsets + term * view.n_windows + w;
  const uint64_t n = view.n_in_slice(offset);
  const uint8_t* slice = view.slice(offset[0]);
  const int64_t base = w * view.window;
  if (n == 0) return;
  if (!is_grouped(view.type)) {
    const uint8_t* value = slice + 2 * n;
    const int64_t bytes = value_bytes(view.type);
    for (uint64_t i = 0; i < n; ++i, value += bytes) body(base + number_at(slice, i), value);
    return;
  }
  each_group(slice, n, [&](uint8_t number, const uint8_t* ids, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) body(base + number_at(ids, i), &number);
  });
}

// Calls body(document, value), likewise.
template <class Body>
void each_posting(const IndexView& view, int64_t term, int64_t w, const Body& body) {
  const float unit = view.unit();
  each_stored(view, term, w, [&](int64_t doc, const uint8_t* value) {
    body(doc, value_at(value, 0, view.type, unit));
  });
}

// The same in all windows.
template <class Body>
void each_posting(const IndexView& view, int64_t term, const Body& body) {
  for (int64_t w = 0; w < view.n_windows; ++w) each_posting(view, term, w, body);
}

// Finds the maxima of blocks for each term of `view`, as multiples of a scale, rounded up.
void find_maxima(IndexView view, uint8_t* maxima, float* scales, int num_threads);

}  // namespace csrkern
