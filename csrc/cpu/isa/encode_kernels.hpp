// What the instruction-set files of encode share.
#pragma once

#include "csrkern/encode.hpp"
#include "ops/topk_relu_rows.hpp"

namespace csrkern {

struct EncodeKernels {
  // Latents begin..end-1 of all rows; x64 [n, d] is x in double.
  void (*linear_exact)(const Linear& layer, const double* x64, int64_t begin, int64_t end,
                       float* out);
  // Rows begin..end-1.
  void (*round_rows)(const Rounding& args, int64_t begin, int64_t end);
  // Rows begin..end-1; x64 [d] is scratch.
  void (*refine)(const Refine& args, int64_t begin, int64_t end, const TopkScratch& scratch,
                 double* x64);
};

extern const EncodeKernels kEncodePortable, kEncodeAvx2, kEncodeAvx512;

// The candidates of any row, by plain comparison: rows with NaN, or with fewer than k entries
// that are surely positive. Ascending latents to `index`; their number in return.
int64_t candidates_of_odd_row(const float* row, int64_t h, int64_t k, double slack, double relative,
                              int32_t* index);

}  // namespace csrkern
