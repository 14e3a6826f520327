// What the instruction-set files of topk_relu share: their signature and their scratch.
#pragma once

#include <cstdint>

#include "csrkern/topk_relu.hpp"

namespace csrkern {

// Room for one row.
struct TopkScratch {
  void* staged;          // a copy of the row where it is strided or masked
  int32_t* bits;         // candidates: the float's bits
  int32_t* index;        // candidates: the latent
  int32_t* group_max;    // maxima of disjoint groups of the row
  int32_t* sorted;       // latents by rank, then scratch for the radix sort
  int32_t* spare_bits;   // radix sort
  int32_t* spare_index;  // radix sort
};

constexpr int kTopkArrays = 7;

// Entries of each array: a row or, in a narrow one, the smallest set of group maxima, plus a
// vector that compression may write past the end.
inline int64_t topk_entries(int64_t h) { return (h > 128 ? h : 128) + 16; }

// Cuts up memory for kTopkArrays * topk_entries(h) entries.
inline TopkScratch topk_scratch(int32_t* memory, int64_t h) {
  const int64_t step = topk_entries(h);
  return {memory,
          memory + step,
          memory + 2 * step,
          memory + 3 * step,
          memory + 4 * step,
          memory + 5 * step,
          memory + 6 * step};
}

// Rows begin..end-1 of args.
using TopkReluRows = void (*)(const TopkRelu& args, int64_t begin, int64_t end,
                              const TopkScratch& scratch);

void topk_relu_rows_portable(const TopkRelu& args, int64_t begin, int64_t end,
                             const TopkScratch& scratch);
void topk_relu_rows_avx2(const TopkRelu& args, int64_t begin, int64_t end,
                         const TopkScratch& scratch);
void topk_relu_rows_avx512(const TopkRelu& args, int64_t begin, int64_t end,
                           const TopkScratch& scratch);

// One row with a NaN in it, by plain comparison; rare, so written for clarity.
void topk_relu_row_with_nan(const float* row, int64_t h, int64_t k, int32_t* order);

}  // namespace csrkern
