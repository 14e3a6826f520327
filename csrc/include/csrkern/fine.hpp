// Fine codes: a few bytes a document. Each byte chooses a word of a codebook; the words add up to
// the document's embedding.
#pragma once

#include <cstdint>

namespace csrkern {

constexpr int64_t kWords = 256;  // of a codebook

// Products of n rows with blocks [rows, columns]: out[i, b * columns + j] is the sum over r, from 0
// on, of x[i, first[b] + r] times blocks[b, r, j]. Each product is rounded before it is added.
struct BlockProducts {
  int64_t n, width;
  const float* x;  // [n, width]
  int64_t n_blocks, rows, columns;
  const float* blocks;   // [n_blocks, rows, columns]
  const int64_t* first;  // [n_blocks], at most width - rows
  float* out;            // [n, n_blocks * columns]
};

void block_products(const BlockProducts& args, int num_threads);

// Rows to be coded. The codebooks form `parts` of equally many; words of two parts are orthogonal.
struct FineEncoding {
  int64_t n, books, parts, beam;
  const float* products;  // [n, books, kWords]: of rows with words
  const float* squares;   // [books, kWords]: of words
  const float* crossed;   // [books, kWords, books / parts, kWords]: of words with those of the part
  uint8_t* codes;         // [n, books]
};

// Finds codes of little squared error, codebook by codebook of a part. After each, the `beam` best
// choices so far are kept; of equal ones that of the better beginning, then of the lower word.
void fine_encode(const FineEncoding& args, int num_threads);

// Returns the sum over the bytes of a code, from the first on, of their entries in the query's
// tables [bytes, kWords].
inline float fine_score(const uint8_t* code, int64_t bytes, const float* tables) {
  float sum = 0;
  for (int64_t m = 0; m < bytes; ++m) sum += tables[m * kWords + code[m]];
  return sum;
}

}  // namespace csrkern
