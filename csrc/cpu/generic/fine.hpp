// Scores by fine codes, for isa/kernels_*.cpp. The loops are written for the compiler to turn into
// vector instructions.
// Internal linkage: each of these files is compiled for another instruction set.
#pragma once

#include <cstdint>
#include <utility>

#include "isa/kernels.hpp"

namespace csrkern {
namespace {

// `Sums` holds the sums of a document for all queries of a batch: add(line) adds the numbers of a
// word; below(limits) returns the queries, as bits, whose sums are below their limits.
template <class Sums>
int64_t find_code(const FineLines& lines, int64_t doc, int64_t end, uint64_t* below) {
  constexpr int64_t kBook = kWords * kFineBatch;
  const uint8_t* code = lines.codes + doc * lines.bytes;
  for (; doc < end; ++doc, code += lines.bytes) {
    Sums sum;
    const uint8_t* book = lines.numbers;
    for (int64_t m = 0; m < lines.books; ++m, book += kBook) sum.add(book + code[m] * kFineBatch);
    const int64_t chosen = lines.bytes > lines.books ? code[lines.books] : 0;
    *below = sum.below(lines.limits + chosen * kFineBatch);
    if (*below != 0) return doc;
  }
  return end;
}

void find_extremes(const float* tables, int64_t books, float* lows, float* highs) {
  constexpr int64_t kLanes = 64;
  for (int64_t m = 0; m < books; ++m) {
    const float* table = tables + m * kWords;
    float low[kLanes], high[kLanes], odd[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) low[j] = high[j] = table[j];
    for (int64_t j = 0; j < kLanes; ++j) odd[j] = table[j] - table[j];
    for (int64_t w = kLanes; w < kWords; w += kLanes) {
      const float* x = table + w;
      for (int64_t j = 0; j < kLanes; ++j) low[j] = x[j] < low[j] ? x[j] : low[j];
      for (int64_t j = 0; j < kLanes; ++j) high[j] = x[j] > high[j] ? x[j] : high[j];
      for (int64_t j = 0; j < kLanes; ++j) odd[j] += x[j] - x[j];  // comparisons pass over NaN
    }
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t j = 0; j < half; ++j) {
        low[j] = low[j + half] < low[j] ? low[j + half] : low[j];
        high[j] = high[j + half] > high[j] ? high[j + half] : high[j];
        odd[j] += odd[j + half];
      }
    }
    lows[m] = low[0];
    highs[m] = high[0] + odd[0];
  }
}

void round_table(const float* table, float high, float per_step, uint8_t* numbers) {
  int32_t whole[kWords];
  for (int64_t w = 0; w < kWords; ++w) {
    const float number = (high - table[w]) * per_step;
    whole[w] = static_cast<int32_t>(number < 255 ? number : 255);
  }
  for (int64_t w = 0; w < kWords; ++w) numbers[w] = static_cast<uint8_t>(whole[w]);
}

void find_limits(double start, double slope, const double* lengths, int64_t n, uint8_t* limits) {
  for (int64_t b = 0; b < n; ++b) {
    double limit = start - slope * lengths[b];
    limit = limit < 255 ? limit : 255;  // NaN becomes 255
    limits[b] = static_cast<uint8_t>(static_cast<int32_t>(limit > 0 ? limit : 0));
  }
}

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
typedef uint8_t Bytes64 __attribute__((vector_size(64)));

// A `Row` holds 16 bytes of one row or of several.
template <class Row>
struct Turned {
  static constexpr int kLanes = sizeof(Row) / 16;

  // Returns eight bytes of each lane of two rows in turn, from byte First of the lane on.
  template <int First, int... I>
  static Row in_turn(Row a, Row b, std::integer_sequence<int, I...>) {
    constexpr int kOther = sizeof(Row);
#ifdef __clang__
    return __builtin_shufflevector(a, b, (I / 16 * 16 + First + I % 16 / 2 + I % 2 * kOther)...);
#else
    return __builtin_shuffle(a, b, Row{(I / 16 * 16 + First + I % 16 / 2 + I % 2 * kOther)...});
#endif
  }

  // Turns squares of 16 bytes over, by four rounds of pairing what is 8 rows apart.
  static void turn(const uint8_t* const* rows, int64_t n, uint8_t* lines, int64_t pitch) {
    constexpr auto kAll = std::make_integer_sequence<int, sizeof(Row)>();
    for (int64_t q = 0; q < 64; q += 16 * kLanes) {
      for (int64_t i = 0; i < n; i += 16) {
        Row square[16], paired[16];
        for (int64_t j = 0; j < 16; ++j) {
          for (int lane = 0; lane < kLanes; ++lane) {
            __builtin_memcpy(reinterpret_cast<uint8_t*>(&square[j]) + 16 * lane,
                             rows[q + 16 * lane + j] + i, 16);
          }
        }
        for (int round = 0; round < 4; ++round) {
          for (int j = 0; j < 8; ++j) {
            paired[2 * j] = in_turn<0>(square[j], square[j + 8], kAll);
            paired[2 * j + 1] = in_turn<8>(square[j], square[j + 8], kAll);
          }
          for (int j = 0; j < 16; ++j) square[j] = paired[j];
        }
        for (int64_t j = 0; j < 16; ++j) {
          __builtin_memcpy(lines + (i + j) * pitch + q, &square[j], 16 * kLanes);
        }
      }
    }
  }
};

template <class Row>
void codes_to_columns(const uint8_t* codes, int64_t bytes, uint8_t* columns, int64_t pitch) {
  const uint8_t* rows[64];
  for (int64_t j = 0; j < 64; ++j) rows[j] = codes + j * bytes;
  Turned<Row>::turn(rows, bytes, columns, pitch);
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

template <class Sums, class Row = Bytes16>
constexpr FineKernels fine_kernels(
    decltype(FineKernels::look_up) look_up = nullptr,
    decltype(FineKernels::to_columns) to_columns = codes_to_columns<Row>) {
  return {find_code<Sums>, look_up,     to_columns,        find_extremes,
          round_table,     find_limits, Turned<Row>::turn, add_codes};
}

}  // namespace
}  // namespace csrkern
