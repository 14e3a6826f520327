// Where the postings of each block of documents are in the lists.
#pragma once

#include <cstdint>
#include <vector>

#include "csrkern/index.hpp"

namespace csrkern {

// For each block, the terms of its documents, as bits, and the postings of each of these terms.
// Takes 27 to 34 bytes for a code of 32 entries; binary searches in the lists instead take four
// times as long.
class Directory {
 public:
  // The lists of the index must have been checked.
  Directory(const IndexView& view, int num_threads);

  // Postings [begin, begin + more] of a slice.
  struct Run {
    uint16_t begin, more;
  };
  void prefetch_word(int64_t block, int64_t term) const { __builtin_prefetch(&word(block, term)); }

  // Returns the postings of a term in a block, or null if there are none.
  const Run* find(int64_t block, int64_t term) const {
    const Word here = word(block, term);
    const uint32_t bit = uint32_t{1} << (term % 32);
    if ((here.bits & bit) == 0) return nullptr;
    return runs_.data() + starts_[block] + here.before + ones(here.bits & (bit - 1));
  }

  int64_t bytes() const {
    return static_cast<int64_t>(words_.bytes() + runs_.size() * sizeof(Run) + starts_.size() * 8);
  }

 private:
  // For 32 terms: the ones that a block has, and how many of the terms before them it has.
  struct Word {
    uint32_t bits, before;
  };

  // Counts bits without an instruction that old processors lack.
  static uint32_t ones(uint32_t x) {
    x -= x >> 1 & 0x55555555;
    x = (x & 0x33333333) + (x >> 2 & 0x33333333);
    return ((x + (x >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24;
  }

  Word& word(int64_t block, int64_t term) const {
    return reinterpret_cast<Word*>(words_.data())[block * n_words_ + term / 32];
  }

  int64_t n_words_;               // of each block
  Buffer words_;                  // Word [n_blocks, n_words]
  std::vector<uint64_t> starts_;  // [n_blocks + 1] runs before each block's
  std::vector<Run> runs_;         // [starts.back()], by block and then by term
};

}  // namespace csrkern
