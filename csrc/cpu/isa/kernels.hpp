// The vector kernels of all operators and of the index: one table per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrkern/encode.hpp"
#include "csrkern/fine.hpp"
#include "csrkern/gather.hpp"
#include "csrkern/prefix_errors.hpp"
#include "csrkern/topk_relu.hpp"

namespace csrkern {

// Memory of topk_relu for one row.
struct TopkScratch {
  void* staged;          // a copy of the row if it is strided or masked
  int32_t* bits;         // candidates: the float's bits
  int32_t* index;        // candidates: the latent
  int32_t* group_max;    // maxima of disjoint groups of the row
  int32_t* sorted;       // latents by rank, then scratch for the radix sort
  int32_t* spare_bits;   // radix sort
  int32_t* spare_index;  // radix sort
};

constexpr int kTopkArrays = 7;

// Elements of each array: a row or, if that is narrow, the smallest set of group maxima, plus one
// vector that compression may write past the end.
inline int64_t topk_entries(int64_t h) { return (h > 128 ? h : 128) + 16; }

// Divides memory for kTopkArrays * topk_entries(h) elements.
inline TopkScratch topk_scratch(int32_t* memory, int64_t h) {
  const int64_t step = topk_entries(h);
  return {memory,
          memory + step,
          memory + 2 * step,
          memory + 3 * step,
          memory + 4 * step,
          memory + 5 * step,
          memory + 6 * step};
}

// Computes rows begin..end-1 of args.
using TopkReluRows = void (*)(const TopkRelu& args, int64_t begin, int64_t end,
                              const TopkScratch& scratch);

// Ranks a row that contains NaN by plain comparison: rare, so written for clarity.
void topk_relu_row_with_nan(const float* row, int64_t h, int64_t k, int32_t* order);

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

// Finds the candidates of any row by plain comparison: for rows with NaN, or with fewer than k
// entries that must be positive. Writes ascending latents to `index` and returns their number.
int64_t candidates_of_odd_row(const float* row, int64_t h, int64_t k, double slack, double relative,
                              int32_t* index);

// The most bytes of a row of the table in one call of sum. The bytes of a row are fetched together
// best, but at twice as many float32 rows of this length are in the L2 cache less often.
constexpr int64_t kGatherBytes = 1536;
// The most latents and columns in one call of scatter.
constexpr int64_t kScatterLatents = 512;
constexpr int64_t kScatterColumns = 256;

struct GatherKernels {
  // Rows begin..end-1 and some columns.
  void (*sum)(const GatherSum& args, int64_t begin, int64_t end, int64_t first_column,
              int64_t last_column);
  // Rows begin..end-1.
  void (*dot)(const GatherDot& args, int64_t begin, int64_t end);
  // Latents begin..end-1 and some columns; the scale of a source is by posting.
  void (*scatter)(const ScatterSum& args, int64_t begin, int64_t end, int64_t first_column,
                  int64_t last_column);
};

// The most columns in one call, and the partial sums of a prefix's squares.
constexpr int64_t kPrefixColumns = 64;
constexpr int64_t kPrefixLanes = 16;

struct PrefixErrorsKernels {
  // Takes rows begin..end-1 and some columns from x - bias to their last residual, and adds the
  // squares of each residual on the way to squares [k, kPrefixLanes].
  void (*squares)(const PrefixErrors& args, int64_t begin, int64_t end, int64_t column,
                  int64_t columns, float* squares);
  // Rows begin..end-1 and some columns, whose inner products go to dots [end - begin, k].
  void (*gradients)(const PrefixErrorsBackward& args, int64_t begin, int64_t end, int64_t column,
                    int64_t columns, float* dots);
};

// Sums over one row's scores so far. Scores of 0 are only counted: most pairs of rows share no
// latent.
struct ScoreSums {
  float peak;       // at least the largest score
  double total;     // sum of exp((score - peak) scale) over the scores that are not 0
  double positive;  // sum of the scores of the row's class
  int64_t zeros;
};

// One side of a loss's gradient: G_j = weight exp((s_j - peak) scale - log_total), minus `pull`
// where the classes are equal.
struct GradientTerm {
  const float* weight;
  const float* peak;
  const float* log_total;
  const float* pull;  // null without labels
};

struct InfoNceKernels {
  // Adds n scores to `sums` and sets them to 0. classes [n], or null without labels.
  // packed: room for n + 16.
  void (*sum_scores)(float* scores, int64_t n, float scale, const int32_t* classes, int32_t own,
                     float* packed, ScoreSums* sums);
  // Replaces n scores with their gradient: the term of the row (arrays of one) plus the terms of
  // the columns (arrays of n); either may be null. Scores of 0 may stay 0: no posting reads them.
  void (*to_gradient)(float* scores, int64_t n, float scale, const int32_t* classes, int32_t own,
                      const GradientTerm* row, const GradientTerm* columns);
};

// A term of a query: its row of the table of offsets, and the query's value.
struct QueryTerm {
  const uint64_t* offsets;  // [n_windows + 1]
  float weight;
  int64_t term;
};

// The postings [from, to) of a posting-list slice of n.
struct SliceRange {
  const uint8_t* slice;
  uint32_t n, from, to;
  float weight;
};

// Queries of one batch: a line of 64 bytes holds a number of each. The largest numbers of a row and
// of a query; a larger sum of their products becomes kMostSum.
constexpr int64_t kBatch = 64, kRowNumber = 255, kQueryNumber = 127, kMostSum = 32'767;

// Rows of whole numbers. The entries [starts[i], starts[i + 1]) are row i's: their terms (uint16)
// from entries + starts[i] * entry_bytes on, their numbers from numbers + starts[i] on. One byte
// after the last number may be read.
struct ByteRows {
  const uint64_t* starts;
  const uint8_t* entries;
  int64_t entry_bytes;
  const uint8_t* numbers;
};

// Queries of one batch over fine codes: a line of 64 bytes holds a number of each.
constexpr int64_t kFineBatch = 64;

// Fine codes of `bytes` each, and a batch of queries: a number for each word of each book, and
// limits for each value of a code's last byte, or, if there are as many books as bytes, for all
// documents. Lines are aligned.
struct FineLines {
  const uint8_t* codes;
  int64_t bytes, books;
  const uint8_t* numbers;  // [books, kWords, kFineBatch]
  const uint8_t* limits;   // [kWords or 1, kFineBatch]
};

// Fine codes that lie column by column, each the same byte of all codes, and one query.
struct FineColumns {
  const uint8_t* columns;  // [books, pitch], and one more for the limits if `scaled`
  int64_t pitch, books;
  bool scaled;
  const uint8_t* numbers;  // [books, kWords], aligned
  const uint8_t* limits;   // [kWords], aligned; unless `scaled`, the first is that of all
};

// Slots after a window's scores, for the unused lanes of an incomplete vector.
constexpr int kSpareSlots = 16;

// Kernels for one stored form of values; `unit` is 1 unless they are squares (index_values.hpp).
// The vector kernels multiply weights by the unit, which is exact if the products are normal; the
// portable kernels have no such condition.
struct ValueKernels {
  // For each term in order, over its slice in `window`: scores[id] += value * weight, where the
  // product is rounded before it is added. scores [window size + kSpareSlots]. Unless this is the
  // `last` window, also prefetches the slices of the next one, which follow in each list: a window
  // takes about as long as memory needs to deliver them.
  void (*score)(const uint8_t* postings, const QueryTerm* terms, int n_terms, int64_t window,
                bool last, int32_t spare, float unit, float* scores);
  // The same for ranges of slices.
  void (*score_ranges)(const SliceRange* ranges, int n_ranges, int32_t spare, float unit,
                       float* scores);
  // scores[i] += value * weight of n documents, a multiple of 64, as in DenseLists; no squares.
  void (*add_dense)(const uint8_t* values, int64_t n, float weight, float* scores);
  // Converts stored values to float32, exactly.
  void (*read)(const uint8_t* stored, int64_t n, float unit, float* values);
};

// Bits of scores, as int32, compare like the scores where these are not negative; negative scores
// have bits below 0.
struct IndexKernels {
  ValueKernels of[4];  // by ValueType; lists in groups have score and read alone
  // Zeroes the scores whose bits are 0; n is a multiple of 64.
  void (*keep)(float* scores, int64_t n, const uint64_t* bits);
  // maxima[j] = max of scores[i] over i = j mod lanes, as bits; `lanes` and n are multiples of 64.
  void (*lane_maxima)(const float* scores, int64_t n, int64_t lanes, uint32_t* maxima);
  // Writes the number and the score of every document whose score's bits are >= bar, in order,
  // then zeroes all n scores; n is a multiple of 64. Returns the number of documents written. Each
  // output has room for n + 16.
  int64_t (*take)(float* scores, int64_t n, uint32_t bar, uint16_t* ids, float* taken);
  // bounds[b] = 1 + sum over t of (rows[t][b] * weights[t] >> 8). No sum exceeds 65,535; n is a
  // multiple of 64.
  void (*add_bounds)(const uint8_t* const* rows, const uint16_t* weights, int n_rows, int64_t n,
                     uint16_t* bounds);
  // Writes the positions of the bounds that are >= least, ascending, and returns their number.
  int64_t (*find_bounds)(const uint16_t* bounds, int64_t n, uint16_t least, int32_t* found);
  // Adds up rows [row, end) for kBatch queries at once, sums[q] = sum over the entries of
  // number * queries[term][q], until a sum reaches its bar. Returns that row, with all its sums and
  // the queries that `reached` their bars as bits, or `end`. queries [terms, kBatch], not negative;
  // bars are above -32,768.
  int64_t (*find_row)(const ByteRows& rows, const int8_t* queries, const int16_t* bars, int64_t row,
                      int64_t end, int16_t* sums, uint64_t* reached);
  // Rounds to float16 (to nearest, ties to even), as bits.
  void (*to_half)(const float* values, int64_t n, uint16_t* halves);
  uint32_t (*crc32c)(uint32_t crc, const uint8_t* data, size_t bytes);
};

// Sums of numbers that exceed 255 become 255.
struct FineKernels {
  // Adds up the numbers of documents [doc, end) for kFineBatch queries at once, until a sum is
  // below its limit. Returns that document, and the queries of which this is so as bits, or `end`.
  int64_t (*find)(const FineLines& lines, int64_t doc, int64_t end, uint64_t* below);
  // Adds up the numbers of n documents; bits of `below` [ceil(n / 64)] say whose sums are below
  // their limits. Columns may be read, and bits be anything, up to a multiple of 64. Null where
  // single queries are not faster by it, and to be called only if looks_up_bytes().
  void (*look_up)(const FineColumns& columns, int64_t n, uint64_t* below);
  // Writes the columns of 64 codes that follow each other; up to 15 columns and bytes more may be
  // written and read. To be called if look_up may be.
  void (*to_columns)(const uint8_t* codes, int64_t bytes, uint8_t* columns, int64_t pitch);
  // lows[b] and highs[b] = the least and the largest entry of tables [books, kWords]; highs[b] is
  // NaN where an entry is not finite.
  void (*extremes)(const float* tables, int64_t books, float* lows, float* highs);
  // numbers[w] = (high - table[w]) * per_step, rounded down, at most 255, for the kWords of a book.
  void (*round)(const float* table, float high, float per_step, uint8_t* numbers);
  // limits[b] = start - slope * shares[b], rounded down, within 0..255; NaN becomes 255.
  void (*limit)(float start, float slope, const float* shares, int64_t n, uint8_t* limits);
  // lines[i * pitch + q] = rows[q][i] for i < n and q < 64. Rows are read, and lines written, up to
  // a multiple of 16.
  void (*turn)(const uint8_t* const* rows, int64_t n, uint8_t* lines, int64_t pitch);
  // Chooses the n words of the largest entries of a table, as bits; of equal entries the lower
  // words. 0 and -0 are equal, and NaN is less than any number. Returns the best word.
  int64_t (*choose)(const float* table, int64_t n, uint64_t* chosen);
  // sums[i] = the sum that fine_score finishes, of n documents that follow each other.
  void (*add)(const uint8_t* codes, int64_t bytes, int64_t books, const float* tables, int64_t n,
              float* sums);
};

struct Kernels {
  TopkReluRows topk_relu;
  EncodeKernels encode;
  GatherKernels gather;
  PrefixErrorsKernels prefix_errors;
  InfoNceKernels info_nce;
  IndexKernels index;
  FineKernels fine;
  // Rows begin..end-1.
  void (*block_products)(const BlockProducts& args, int64_t begin, int64_t end);
  void (*unit_row)(const float* x, int64_t width, const float* center, float* out);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#elif defined(__aarch64__)
extern const Kernels kNeon;
#endif

// Returns the kernels of isa().
const Kernels& kernels();

}  // namespace csrkern
