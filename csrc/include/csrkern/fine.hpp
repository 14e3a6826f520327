// Fine codes: a few bytes a document. Each byte chooses a word of a codebook; the words add up to
// the document's embedding.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace csrkern {

constexpr int64_t kWords = 256;  // of a codebook

// Brings rows x [n, width] to L2 norm 1 and takes the center [width] away (null: nothing); zeros
// become what is left of zeros. A norm is a sum in double, in an order that depends on the width.
void unit_rows(const float* x, int64_t n, int64_t width, const float* center, float* out,
               int num_threads);

// Returns whether all numbers are at most `limit` in magnitude; NaN is not.
bool within(const float* x, int64_t n, float limit);

// Products of n rows with blocks [rows, columns]: out[i, b * columns + j] is the sum over r, from 0
// on, of x[i, first[b] + r] times blocks[b, r, j]. A product and the sum are rounded at once.
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

// Returns a score from the sum of a code's table entries: the offset is added, and the sum times
// the scale (none if null) that one byte after the books chooses. NaN, where an overflow of either
// sign met one of the other, becomes the least number.
inline float finished_score(float sum, const uint8_t* code, int64_t books, float offset,
                            const float* scales) {
  float score = sum + offset;
  if (scales != nullptr) score *= scales[code[books]];
  return score == score ? score : -std::numeric_limits<float>::max();
}

// Returns the score of a code for a query: its entries in the query's tables [books, kWords] are
// added up, from the first book on.
inline float fine_score(const uint8_t* code, int64_t books, const float* tables, float offset,
                        const float* scales) {
  float sum = 0;
  for (int64_t m = 0; m < books; ++m) sum += tables[m * kWords + code[m]];
  return finished_score(sum, code, books, offset, scales);
}

struct Segment;

// Queries that are compared with the fine codes of all documents.
struct FineQueries {
  int64_t n, books;
  const float* tables;   // [n, books, kWords]
  const float* offsets;  // [n], added to sums
  const float* scales;   // [kWords] positive factors of scores, chosen by one byte more; or null
  int64_t top_k;
  float min_score = -std::numeric_limits<float>::infinity();
  int num_threads = 1;
  // Documents whose first word is not among this many of a query's best are left out: those of the
  // largest entries of its first table, of equal ones the lower words.
  int64_t probes = kWords;
};

// Finds the best `top_k` documents of each query by fine_score, exactly among those that `probes`
// leaves: scores and ids [n, top_k], best first, ties by lower id; missing places hold (-inf, -1).
void search_fine(const std::vector<Segment>& segments, const FineQueries& queries, float* scores,
                 int64_t* ids);

}  // namespace csrkern
