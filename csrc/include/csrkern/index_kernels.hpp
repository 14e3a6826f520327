// The inner loops of the inverted index, one implementation per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace csrkern {

// One query term within the index: its row of the offsets table and the query's value.
struct QueryTerm {
  const uint64_t* offsets;  // [n_windows + 1]
  float weight;
  int64_t term;
};

// The postings [from, to) of a segment of n.
struct Part {
  const uint8_t* segment;
  uint32_t n, from, to;
  float weight;
};

// Slots of score memory after a window's documents, for the lanes of an incomplete vector.
constexpr int kSpareSlots = 16;

// What depends on how values are stored; `unit` is 1 unless they are squares (index_values.hpp).
// The vector kernels multiply it into the weights, which is exact if the products are normal; the
// portable ones need no such condition.
struct ValueKernels {
  // For each term in order, over its segment in `window`: scores[id] += value * weight, the
  // product rounded before it is added. scores [window size + kSpareSlots]. Unless it is the
  // `last` window, the postings of the next are fetched meanwhile: a list's segments follow each
  // other, and the time that a window takes is what memory needs.
  void (*score)(const uint8_t* postings, const QueryTerm* terms, int n_terms, int64_t window,
                bool last, int32_t spare, float unit, float* scores);
  // The same for parts of segments.
  void (*score_parts)(const Part* parts, int n_parts, int32_t spare, float unit, float* scores);
  // Stored values as they count, exactly.
  void (*read)(const uint8_t* stored, int64_t n, float unit, float* values);
};

// Scores are non-negative floats, so they are compared by their bits.
struct IndexKernels {
  ValueKernels of[4];  // by ValueType
  // Zeroes the scores whose bits are 0; n is a multiple of 64.
  void (*keep)(float* scores, int64_t n, const uint64_t* bits);
  // maxima[j] = max of scores[i] over i = j mod lanes, as bits; `lanes` and n are multiples of 64.
  void (*lane_maxima)(const float* scores, int64_t n, int64_t lanes, uint32_t* maxima);
  // Writes number and score of every document whose score's bits are >= bar, in order, and
  // zeroes all n scores; n is a multiple of 64. Returns how many were written. Each output
  // has room for n + 16.
  int64_t (*take)(float* scores, int64_t n, uint32_t bar, uint16_t* ids, float* taken);
  // bounds[b] = 1 + sum over t of (rows[t][b] * weights[t] >> 8), where no sum exceeds 65,535;
  // n is a multiple of 64.
  void (*add_bounds)(const uint8_t* const* rows, const uint16_t* weights, int n_rows, int64_t n,
                     uint16_t* bounds);
  // Writes the numbers of the bounds that are >= least, ascending, and returns how many.
  int64_t (*find_bounds)(const uint16_t* bounds, int64_t n, uint16_t least, int32_t* found);
  // Rounds to float16 (to nearest, ties to even), as bits.
  void (*to_half)(const float* values, int64_t n, uint16_t* halves);
  uint32_t (*crc32c)(uint32_t crc, const uint8_t* data, size_t bytes);
};

extern const IndexKernels kIndexKernelsPortable;
#ifdef CSRKERN_X86
extern const IndexKernels kIndexKernelsAvx2;
extern const IndexKernels kIndexKernelsAvx512;
#endif

// The kernels of the instruction set in use.
const IndexKernels& index_kernels();

// float16 bits to float32, exactly.
float half_to_float(uint16_t half);

}  // namespace csrkern
