// Scores by fine codes, for isa/kernels_*.cpp. The loops are written for the compiler to turn into
// vector instructions.
// Internal linkage: each of these files is compiled for another instruction set.
#pragma once

#include <cstdint>

#include "isa/kernels.hpp"

namespace csrkern {
namespace {

// `Sums` holds the sums of a document for all queries of a batch: add(line) adds the numbers of a
// word; reached(bars) returns the queries, as bits, whose sums reach their bars.
template <class Sums>
int64_t find_code(const FineLines& lines, int64_t doc, int64_t end, uint16_t* sums,
                  uint32_t* reached) {
  constexpr int64_t kBook = kWords * kFineBatch;
  const uint8_t* code = lines.codes + doc * lines.bytes;
  for (; doc < end; ++doc, code += lines.bytes) {
    Sums sum;
    const uint16_t* book = lines.numbers;
    for (int64_t m = 0; m < lines.books; ++m, book += kBook) sum.add(book + code[m] * kFineBatch);
    const int64_t bar = lines.bytes > lines.books ? code[lines.books] : 0;
    *reached = sum.reached(lines.bars + bar * kFineBatch);
    if (*reached != 0) {
      sum.store(sums);
      return doc;
    }
  }
  return end;
}

void find_limits(const float* tables, int64_t books, float* lows, float* highs) {
  constexpr int64_t kLanes = 16;
  for (int64_t m = 0; m < books; ++m) {
    const float* table = tables + m * kWords;
    float low[kLanes], high[kLanes], odd[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) {
      low[j] = high[j] = table[j];
      odd[j] = table[j] - table[j];
    }
    for (int64_t w = kLanes; w < kWords; w += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) {
        const float x = table[w + j];
        low[j] = x < low[j] ? x : low[j];
        high[j] = x > high[j] ? x : high[j];
        odd[j] += x - x;  // comparisons pass over NaN
      }
    }
    lows[m] = low[0];
    highs[m] = high[0];
    for (int64_t j = 1; j < kLanes; ++j) {
      lows[m] = low[j] < lows[m] ? low[j] : lows[m];
      highs[m] = high[j] > highs[m] ? high[j] : highs[m];
    }
    for (int64_t j = 0; j < kLanes; ++j) highs[m] += odd[j];
  }
}

void round_table(const float* table, float low, float per_step, uint16_t* numbers) {
  int32_t whole[kWords];
  for (int64_t w = 0; w < kWords; ++w) whole[w] = static_cast<int32_t>((table[w] - low) * per_step);
  for (int64_t w = 0; w < kWords; ++w) numbers[w] = static_cast<uint16_t>(whole[w]);
}

typedef uint16_t Row __attribute__((vector_size(16)));

// Returns four numbers of two rows in turn, from number kFirst on.
template <int kFirst>
Row in_turn(Row a, Row b) {
  constexpr int i = kFirst, j = kFirst + 8;
#ifdef __clang__
  return __builtin_shufflevector(a, b, i, j, i + 1, j + 1, i + 2, j + 2, i + 3, j + 3);
#else
  return __builtin_shuffle(a, b, Row{i, j, i + 1, j + 1, i + 2, j + 2, i + 3, j + 3});
#endif
}

// Turns squares of 8 words and 8 queries over, by three rounds of pairing what is 4 rows apart.
void interleave_rows(const uint16_t* const* rows, int64_t n, uint16_t* lines) {
  for (int64_t i = 0; i < n; i += 8) {
    for (int64_t q = 0; q < kFineBatch; q += 8) {
      Row square[8], paired[8];
      for (int64_t j = 0; j < 8; ++j) __builtin_memcpy(&square[j], rows[q + j] + i, 16);
      for (int round = 0; round < 3; ++round) {
        for (int j = 0; j < 4; ++j) {
          paired[2 * j] = in_turn<0>(square[j], square[j + 4]);
          paired[2 * j + 1] = in_turn<4>(square[j], square[j + 4]);
        }
        for (int j = 0; j < 8; ++j) square[j] = paired[j];
      }
      for (int64_t j = 0; j < 8; ++j) {
        __builtin_memcpy(lines + (i + j) * kFineBatch + q, &square[j], 16);
      }
    }
  }
}

void raise_bars(const double* slopes, const double* starts, const double* lengths, int64_t n,
                uint16_t* bars) {
  for (int64_t b = 0; b < n; ++b, bars += kFineBatch) {
    for (int64_t q = 0; q < kFineBatch; ++q) {
      double bar = slopes[q] * lengths[b] - starts[q];
      bar = bar > 0 ? bar : 0;  // NaN becomes 0
      bar = bar < 65'535 ? bar : 65'535;
      bars[q] = static_cast<uint16_t>(static_cast<int32_t>(bar));
    }
  }
}

void add_codes(const uint8_t* codes, int64_t bytes, int64_t books, const float* tables, int64_t n,
               float* sums) {
  constexpr int64_t kTogether = 8;  // sums that wait for each other's additions
  for (; n >= kTogether; n -= kTogether, codes += kTogether * bytes, sums += kTogether) {
    float own[kTogether] = {};
    for (int64_t m = 0; m < books; ++m) {
#pragma GCC unroll 8
      for (int64_t j = 0; j < kTogether; ++j) own[j] += tables[m * kWords + codes[j * bytes + m]];
    }
    for (int64_t j = 0; j < kTogether; ++j) sums[j] = own[j];
  }
  for (int64_t j = 0; j < n; ++j) {
    sums[j] = 0;
    for (int64_t m = 0; m < books; ++m) sums[j] += tables[m * kWords + codes[j * bytes + m]];
  }
}

template <class Sums>
constexpr FineKernels kFine = {find_code<Sums>, find_limits, round_table,
                               interleave_rows, raise_bars,  add_codes};

}  // namespace
}  // namespace csrkern
