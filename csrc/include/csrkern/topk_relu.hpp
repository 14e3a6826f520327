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
  const uint8_t* latent_mask;  // [h], 0 keeps a latent from winning; null: all may win
  int64_t k;                   // 1 <= k <= h
  void* values;                // [n, k] contiguous
  int32_t* indices;            // [n, k] contiguous
};

// Rows of `args` on up to num_threads threads. Positive entries by value, NaN first, equal
// values by lower index; remaining slots are 0 with index 0.
void topk_relu(const TopkRelu& args, int num_threads);

}  // namespace csrkern
