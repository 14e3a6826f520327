// Codes in few bits: each row has the same number of bytes and can be read alone.
//
// A row consists of these bits, lowest first: 8 bits for its scale; its k latents, ascending, in
// the code of Elias and Fano (1971-74): for each the bits above `low_bits` in unary (as many zeros
// as they grew since the previous latent, then a one), then for each the `low_bits`; then for each
// its level, in `value_bits`. A value is scale * level / (2^value_bits - 1), and the scale is
// largest * 2^(-byte / 8). Empty slots come last: they repeat the last latent, or 0, at level 0.
#pragma once

#include <cstdint>

#include "csrkern/codes.hpp"

namespace csrkern {

constexpr int kMaxValueBits = 8;

struct PackedForm {
  int64_t k;
  int64_t dim;
  int value_bits;  // 1 .. kMaxValueBits
  int low_bits;    // chosen for the shortest row
  int64_t row_bytes;
};

PackedForm packed_form(int64_t k, int64_t dim, int value_bits);

// Fills rows [n, row_bytes]. No value of `codes` may be NaN or above `largest`, which is positive.
// Returns the first row with a negative value, a latent out of range or a repeated latent, or n.
// If it is not n, the result is undefined.
int64_t pack(const Codes& codes, const PackedForm& form, float largest, uint8_t* rows,
             int num_threads);

// Fills values and indices [n, k] by value descending, then by latent. Returns the first row that
// `pack` cannot have written, or n. If it is not n, the result is undefined.
int64_t unpack(const uint8_t* rows, int64_t n, const PackedForm& form, float largest, float* values,
               int32_t* indices, int num_threads);

}  // namespace csrkern
