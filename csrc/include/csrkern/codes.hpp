// Sparse codes and their transposition, as the kernels see them.
#pragma once

#include <cstdint>
#include <functional>

namespace csrkern {

// n rows of k slots over dim latents. A slot whose value is 0 is empty: its index means nothing and
// is never followed.
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

// Throws std::out_of_range, naming the first bad row, unless the latent of every slot that is not
// empty is in 0..dim-1. Kernels that take codes check them; this is for what else follows indices.
void check_latents(const Codes& codes, int num_threads);

// Calls body(begin, end) over the rows, in pieces of at most `grain` on up to `num_threads`
// threads. The rows of a piece have been through check_latents just before, while they enter the
// cache; bad ones are not given to body, and what it throws is thrown at the end.
void for_checked_rows(const Codes& codes, int64_t grain, int num_threads,
                      const std::function<void(int64_t begin, int64_t end)>& body);

// Throws std::out_of_range unless the lists of dim latents begin at 0, never decrease, end within
// `entries` places, and name rows in 0..n-1 and slots in 0..k-1.
void check_postings(const Postings& postings, int64_t n, int64_t k, int64_t dim, int64_t entries);

// The first row that is not in the form that codes promise, or n: values not negative and not
// increasing, NaN first, equal ones by latent; latents in range and distinct; empty slots at the
// end, with index 0.
int64_t first_invalid(const Codes& codes, int num_threads);

// Fills starts [dim + 1] and the first starts[dim] places of rows, slots and values [n * k].
// The result does not depend on num_threads. Throws as check_latents, or std::length_error if rows
// or slots cannot be numbered in int32.
void transpose(const Codes& codes, int64_t* starts, int32_t* rows, int32_t* slots, float* values,
               int num_threads);

}  // namespace csrkern
