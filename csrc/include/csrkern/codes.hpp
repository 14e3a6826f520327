// Sparse codes and their transpose, as the kernels see them.
#pragma once

#include <cstdint>
#include <functional>

namespace csrkern {

// n rows of k slots over dim latents. A slot of value 0 is empty: its index is never read.
struct Codes {
  const float* values;     // [n, k] contiguous
  const int32_t* indices;  // [n, k] contiguous
  int64_t n;
  int64_t k;
  int64_t dim;
};

// The same entries by latent. The list of latent l is starts[l] .. starts[l + 1] - 1, by ascending
// row.
struct Postings {
  const int64_t* starts;  // [dim + 1]
  const int32_t* rows;    // [n * k]
  const int32_t* slots;   // [n * k]
  const float* values;    // [n * k]
};

// Throws std::out_of_range, naming the first bad row, unless the latent of every slot that is not
// empty is in 0..dim-1. Kernels check the codes they take; call this before other use of indices.
void check_latents(const Codes& codes, int num_threads);

// Calls body(begin, end) over the rows, in chunks of at most `grain` on up to `num_threads`
// threads. Each chunk is checked as by check_latents just before, while it enters the cache. A
// bad chunk is not given to body; its error is thrown at the end.
void for_checked_rows(const Codes& codes, int64_t grain, int num_threads,
                      const std::function<void(int64_t begin, int64_t end)>& body);

// Throws std::out_of_range unless the starts of dim lists begin at 0, never decrease and end within
// `entries`, rows are in 0..n-1 and slots in 0..k-1.
void check_postings(const Postings& postings, int64_t n, int64_t k, int64_t dim, int64_t entries);

// Returns the first row that breaks the invariants of codes, or n: values are not negative and do
// not increase, NaN first, ties by latent; latents are in range and distinct; empty slots come
// last and have index 0.
int64_t first_invalid(const Codes& codes, int num_threads);

// Fills starts [dim + 1] and the first starts[dim] elements of rows, slots and values [n * k].
// The result does not depend on num_threads. Throws as check_latents does, or std::length_error if
// int32 cannot number the rows or slots.
void transpose(const Codes& codes, int64_t* starts, int32_t* rows, int32_t* slots, float* values,
               int num_threads);

}  // namespace csrkern
