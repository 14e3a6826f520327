// Sums of table rows selected by codes, and their gradients. Tables are row-major with unit
// column stride; all sums run in float32, in the order of the slots or rows. Codes are checked as
// by check_latents, postings as by check_postings.
#pragma once

#include <cstdint>

#include "csrkern/codes.hpp"
#include "csrkern/topk_relu.hpp"

namespace csrkern {

struct Table {
  const void* data;    // [rows, d]
  int64_t row_stride;  // in elements
};

// outs[q][i] = Σ over s < ends[q] of values[i, s] · table[indices[i, s]] + bias: one pass sums
// several prefixes of each code.
constexpr int kMaxPrefixes = 8;
constexpr int kMaxSources = kMaxPrefixes + 1;
struct GatherSum {
  Codes codes;
  DType dtype;  // of table, bias and outs
  Table table;  // [codes.dim, d]
  int64_t d;
  const void* bias;  // [d] or null
  int num_prefixes;
  int64_t ends[kMaxPrefixes];  // strictly increasing, the last at most codes.k
  void* outs[kMaxPrefixes];    // [n, d] contiguous
};
void gather_sum(const GatherSum& args, int num_threads);

// The rows that slots begin..end-1 of the codes are multiplied with. Prefixes that are trained
// together have different gradients; one pass takes all of them.
struct Source {
  Table rows;  // [n, d]
  int64_t begin;
  int64_t end;
  const float* scale;  // [n, k], the factor of each entry; unused by gather_dot
};

// out[i, s] = Σ over sources with begin <= s < end of ⟨rows[i], table[indices[i, s]]⟩ where
// values[i, s] ≠ 0, else 0.
struct GatherDot {
  Codes codes;
  DType dtype;
  Table table;  // [codes.dim, d]
  int64_t d;
  int num_sources;
  Source sources[kMaxSources];
  float* out;  // [n, k]
};
void gather_dot(const GatherDot& args, int num_threads);

// The transposed gather: out[l] = Σ over the postings (i, s) of latent l and over sources with
// begin <= s < end of scale[i, s] · rows[i]. One thread sums each latent, in row order, so the
// result does not depend on num_threads.
struct ScatterSum {
  const int64_t* starts;  // [dim + 1]; see Postings
  const int32_t* rows;
  const int32_t* slots;
  int64_t entries;  // length of rows and slots
  int64_t n;
  int64_t k;
  int64_t dim;
  DType dtype;
  int64_t d;
  int num_sources;
  Source sources[kMaxSources];
  void* out;          // [dim, d] contiguous
  int64_t tile_rows;  // set by scatter_sum
};
void scatter_sum(ScatterSum args, int num_threads);

}  // namespace csrkern
