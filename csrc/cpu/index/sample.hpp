// Some documents of an index, spread over it: a search of them finds where walks begin.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "csrkern/index.hpp"
#include "index/forward.hpp"

namespace csrkern {

class Sample {
 public:
  // `forward`: that of the index of `whole`.
  Sample(const IndexView& whole, const ForwardIndex& forward, int num_threads);

  // An index of one of each `stride` documents, numbered from 0.
  const Index& index() const { return *index_; }
  // Returns the document of a number. Not of equal distances, as documents may come in turns.
  int64_t document(int64_t number) const {
    const int64_t shift = static_cast<uint32_t>(number) * 2'654'435'761u >> 16;
    return std::min(number * stride_ + shift % stride_, n_docs_ - 1);
  }
  int64_t bytes() const;

 private:
  int64_t stride_, n_docs_;
  BuiltIndex built_;
  std::unique_ptr<Index> index_;
};

}  // namespace csrkern
