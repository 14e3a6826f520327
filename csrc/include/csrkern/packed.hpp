// Codes in few bits: a row in a fixed number of bytes, which any row can be read from alone.
//
// A row is, bit after bit from the lowest: 8 bits for its scale; its k latents, ascending, by Elias
// and Fano (1971-74): of each the bits above `low_bits` in unary (as many zeros as they grew since
// the latent before, then a one), then the `low_bits` below; and for each latent its level, in
// `value_bits`. A value is scale * level / (2^value_bits - 1), the scale largest * 2^(-byte / 8).
// Empty slots are at the end: they repeat the last latent, or 0, at level 0.
#pragma once

#include <cstdint>

#include "csrkern/codes.hpp"

namespace csrkern {

constexpr int kMaxValueBits = 8;

struct PackedForm {
  int64_t k;
  int64_t dim;
  int value_bits;  // 1 .. kMaxValueBits
  int low_bits;    // what makes a row shortest
  int64_t row_bytes;
};

PackedForm packed_form(int64_t k, int64_t dim, int value_bits);

// Fills rows [n, row_bytes]. No value of `codes` may be NaN or above `largest`, which is positive.
// Returns the first row with a negative value, or a latent that is out of range or comes twice, or
// n; what it then filled means nothing.
int64_t pack(const Codes& codes, const PackedForm& form, float largest, uint8_t* rows,
             int num_threads);

// Fills values and indices [n, k], strongest first, and equals by latent. Returns the first row
// that `pack` cannot have written, or n; what it then filled means nothing.
int64_t unpack(const uint8_t* rows, int64_t n, const PackedForm& form, float largest, float* values,
               int32_t* indices, int num_threads);

}  // namespace csrkern
