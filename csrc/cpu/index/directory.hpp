// Where the postings of each block of documents stand in the lists.
#pragma once

#include <cstdint>
#include <vector>

#include "csrkern/index.hpp"

namespace csrkern {

// For each block, the terms that its documents have, as bits, and for each of these its postings.
// 27 to 34 bytes a code of 32 entries, made in memory: binary searches in the lists take four
// times as long.
class Directory {
 public:
  // The index's lists are known to be good.
  Directory(const IndexView& view, int num_threads);

  // Postings [begin, begin + more] of a segment.
  struct Run {
    uint16_t begin, more;
  };
  void prefetch_word(int64_t block, int64_t term) const { __builtin_prefetch(&word(block, term)); }

  // The postings of a term in a block, or null: it has none.
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
  // 32 terms: which a block has, and how many it has of those before them.
  struct Word {
    uint32_t bits, before;
  };

  // Not all processors that run this have an instruction for it.
  static uint32_t ones(uint32_t x) {
    x -= x >> 1 & 0x55555555;
    x = (x & 0x33333333) + (x >> 2 & 0x33333333);
    return ((x + (x >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24;
  }

  Word& word(int64_t block, int64_t term) const {
    return reinterpret_cast<Word*>(words_.data())[block * n_words_ + term / 32];
  }

  int64_t n_words_;               // for each block
  Buffer words_;                  // Word [n_blocks, n_words]
  std::vector<uint64_t> starts_;  // [n_blocks + 1] runs before each block's
  std::vector<Run> runs_;         // [starts.back()], by block and then by term
};

}  // namespace csrkern
