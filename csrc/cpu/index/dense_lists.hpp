// The lists of terms that many documents have, as arrays of values.
#pragma once

#include <cstdint>
#include <vector>

#include "csrkern/index.hpp"

namespace csrkern {

// For each term that more than a quarter of the documents have, the values of all documents, 0
// where one lacks the term. Adding up all of them takes 0.1 to 0.15 ns a document, a posting 0.5:
// text has terms that half of all documents and many queries have.
class DenseLists {
 public:
  static bool takes(const IndexView& view, uint64_t n_postings) {
    return view.block == 0 && !is_squares(view.type) &&  // squares have no 0
           n_postings > static_cast<uint64_t>(view.n_docs / 4);
  }

  // The lists of the index that `takes` names must have been checked.
  explicit DenseLists(const IndexView& view);

  // Returns the values of a window, with zeros up to a multiple of 64 documents, or null.
  const uint8_t* find(int64_t term, int64_t window) const {
    if (rows_[term] < 0) return nullptr;
    return values_.data() + (rows_[term] * n_windows_ + window) * window_bytes_;
  }

  int64_t bytes() const {
    return static_cast<int64_t>(values_.bytes() + rows_.size() * sizeof(int32_t));
  }

 private:
  int64_t n_windows_, window_bytes_;
  std::vector<int32_t> rows_;  // [n_terms], -1: none
  Buffer values_;              // [rows, n_windows, window]
};

}  // namespace csrkern
