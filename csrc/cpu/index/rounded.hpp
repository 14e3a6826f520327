// Codes by document in whole numbers, for searches of many queries at once.
#pragma once

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
  // The scale at which no rounded row has an L2 norm above kRowNorm; 0 if there is none.
  double scale() const { return scale_; }
  // The largest L2 norm of the error of a row, at that scale.
  double error() const { return error_; }
  int64_t longest() const { return forward_.longest(); }
  int64_t bytes() const { return static_cast<int64_t>(numbers_.bytes()); }

 private:
  const ForwardIndex& forward_;
  double scale_ = 0, error_ = 0;
  Buffer numbers_;  // a byte for each entry, and one more that is read but not used
};

}  // namespace csrkern
