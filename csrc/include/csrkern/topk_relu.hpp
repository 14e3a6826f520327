// The k largest positive entries of every row.
#pragma once

#include <cstdint>

namespace csrkern {

enum class DType { float32, float16, bfloat16 };

struct TopkRelu {
  const void* pre;             // [n, h], element (i, j) at pre + i * row_stride + j * col_stride
  DType dtype;                 // of pre and of values
  int64_t n;                   // rows
  int64_t h;                   // latents, < 2^31
  int64_t row_stride;          // in elements
  int64_t col_stride;          // in elements
  const uint8_t* latent_mask;  // [h], 0 excludes a latent; null: none is excluded
  int64_t k;                   // 1 <= k <= h
  void* values;                // [n, k] contiguous
  int32_t* indices;            // [n, k] contiguous
};

// Writes the k largest positive entries of each row by value, NaN first, ties by lower index.
// Remaining slots are 0 with index 0.
void topk_relu(const TopkRelu& args, int num_threads);

}  // namespace csrkern
