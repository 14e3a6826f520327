// What the instruction-set files of topk_relu share: their signature and their scratch.
#pragma once

#include <cstdint>

#include "csrkern/topk_relu.hpp"

namespace csrkern {

// Room for one row; every array has `h` entries rounded up, plus a vector of slack.
struct TopkScratch {
  void* staged;          // a copy of the row where it is strided or masked
  int32_t* bits;         // candidates: the float's bits
  int32_t* index;        // candidates: the latent
  int32_t* group_max;    // maxima of disjoint groups of the row
  int32_t* sorted;       // latents by rank, then scratch for the radix sort
  int32_t* spare_bits;   // radix sort
  int32_t* spare_index;  // radix sort
};

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
