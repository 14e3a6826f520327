// Sparse codes and their transposition, as the kernels see them.
#pragma once

#include <cstdint>

namespace csrkern {

// n rows of k slots over dim latents; a slot whose value is 0 is empty.
struct Codes {
  const float* values;     // [n, k] contiguous
  const int32_t* indices;  // [n, k] contiguous
  int64_t n;
  int64_t k;
  int64_t dim;
};

// The same entries by latent. The list of latent l is starts[l] .. starts[l + 1] - 1, rows
// ascending.
struct Postings {
  const int64_t* starts;  // [dim + 1]
  const int32_t* rows;    // [n * k]
  const int32_t* slots;   // [n * k]
  const float* values;    // [n * k]
};

// Fills starts [dim + 1] and the first starts[dim] places of rows, slots and values [n * k].
// The result does not depend on num_threads.
void transpose(const Codes& codes, int64_t* starts, int32_t* rows, int32_t* slots, float* values,
               int num_threads);

}  // namespace csrkern
