// Some documents of an index, evenly spread: a search of them finds where walks begin.
#pragma once

#include <cstdint>
#include <memory>

#include "csrkern/index.hpp"
#include "index/forward.hpp"

namespace csrkern {

class Sample {
 public:
  // `forward`: that of the index of `whole`.
  Sample(const IndexView& whole, const ForwardIndex& forward, int num_threads);

  // An index of the documents 0, stride(), 2 stride() and so on, numbered from 0.
  const Index& index() const { return *index_; }
  int64_t stride() const { return stride_; }
  int64_t bytes() const;

 private:
  int64_t stride_;
  BuiltIndex built_;
  std::unique_ptr<Index> index_;
};

}  // namespace csrkern
