// Codes by document in whole numbers, for searches of many queries at once.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "index/forward.hpp"
#include "isa/kernels.hpp"

namespace csrkern {

// The values of a forward index, rounded to bytes: of a value v, v * scale().
class RoundedRows {
 public:
  // `forward` outlives this and has no more than 65,536 terms.
  RoundedRows(const ForwardIndex& forward, int64_t n_docs, int num_threads);

  ByteRows rows() const;
  // The scale at which the largest value is kRowNumber; 0 if there are no values.
  double scale() const { return scale_; }
  // The largest L2 norms of a row and of the error of a row, at that scale.
  double norm() const { return norm_; }
  double error() const { return error_; }
  int64_t longest() const { return forward_.longest(); }
  // The time beside the scan that the last batch took for a query, as counted; -1 before the first.
  double ns_of_candidates() const { return ns_of_candidates_.load(std::memory_order_relaxed); }
  void note_candidates(double ns) const { ns_of_candidates_.store(ns, std::memory_order_relaxed); }
  // The score that sums need to hold, as a share of what norms allow: twice what the last hits of
  // the last batch had. More is only slower.
  double ceiling() const { return ceiling_.load(std::memory_order_relaxed); }
  void note_share(double share) const {
    ceiling_.store(std::clamp(2 * share, 1e-3, 1.0), std::memory_order_relaxed);
  }
  int64_t bytes() const { return static_cast<int64_t>(numbers_.bytes()); }

 private:
  const ForwardIndex& forward_;
  double scale_ = 0, norm_ = 0, error_ = 0;
  mutable std::atomic<double> ns_of_candidates_{-1}, ceiling_{1};
  Buffer numbers_;  // a byte for each entry, and one more that is read but not used
};

}  // namespace csrkern
