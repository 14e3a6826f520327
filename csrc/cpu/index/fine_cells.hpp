// Documents by the first word of their fine codes: a cell holds those of one word.
#pragma once

#include <cstdint>
#include <vector>

#include "csrkern/fine.hpp"
#include "csrkern/index.hpp"

namespace csrkern {

class FineCells {
 public:
  explicit FineCells(const IndexView& view);

  // Writes the documents of a cell, ascending, and their fine codes [docs->size(), fine_bytes].
  void read(const IndexView& view, int64_t word, std::vector<int64_t>* docs,
            std::vector<uint8_t>* codes) const;

  int64_t bytes() const {
    return static_cast<int64_t>(starts_.size() * sizeof(int64_t) + numbers_.size() * 2);
  }

 private:
  std::vector<int64_t> starts_;    // [windows * kWords + 1], of each window's part of each cell
  std::vector<uint16_t> numbers_;  // [n_docs], in the window
};

}  // namespace csrkern
