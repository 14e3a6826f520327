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

void find_limits(float start, float slope, const float* shares, int64_t n, uint8_t* limits) {
  for (int64_t b = 0; b < n; ++b) {
    float limit = start - slope * shares[b];
    limit = limit < 255 ? limit : 255;
    limits[b] = static_cast<uint8_t>(static_cast<int32_t>(limit > 0 ? limit : 0));
  }
}

// Keys ascend with the number that they stand for; 0 and -0 are one, and NaN is least.
inline int32_t key_of(float x) {
  const float unsigned_zero = x + 0.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &unsigned_zero, sizeof(bits));
  return x == x ? bits ^ (bits >> 31 & 0x7fffffff) : INT32_MIN;
}

inline float number_of(int32_t key) {
  const int32_t bits = key ^ (key >> 31 & 0x7fffffff);
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

// Returns 64 bytes, each 0 or 1, as bits.
inline uint64_t packed(const uint8_t* bytes) {
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    __builtin_memcpy(&eight, bytes + 8 * i, 8);
    bits |= (eight * 0x0102040810204080) >> 56 << 8 * i;
  }
  return bits;
}

int64_t choose_words(const float* table, int64_t n, uint64_t* chosen) {
  // Entries lie more evenly than their keys, so that halves of them need fewer rounds.
  constexpr int kByNumber = 16;
  int32_t keys[kWords];
  for (int64_t w = 0; w < kWords; ++w) keys[w] = key_of(table[w]);
  int32_t least = keys[0], most = keys[0];
  for (int64_t w = 1; w < kWords; ++w) least = keys[w] < least ? keys[w] : least;
  for (int64_t w = 1; w < kWords; ++w) most = keys[w] > most ? keys[w] : most;
  uint8_t best[kWords], over[kWords], equal[kWords];
  for (int64_t w = 0; w < kWords; ++w) best[w] = keys[w] == most;
  int64_t low = least, high = int64_t{most} + 1;  // reached by n keys, and by fewer
  for (int32_t round = 0, count = 0; high - low > 1 && count != n; ++round) {
    int64_t middle = low + (high - low) / 2;
    const int64_t even = key_of(number_of(static_cast<int32_t>(low)) / 2 + number_of(most) / 2);
    if (round < kByNumber && low < even && even < high) middle = even;
    const auto bar = static_cast<int32_t>(middle);
    count = 0;
    for (int64_t w = 0; w < kWords; ++w) count += keys[w] >= bar;
    if (count < n) most = bar;
    (count < n ? high : low) = middle;
  }
  const auto bar = static_cast<int32_t>(low);
  for (int64_t w = 0; w < kWords; ++w) over[w] = keys[w] > bar;
  for (int64_t w = 0; w < kWords; ++w) equal[w] = keys[w] == bar;
  int64_t missing = n;
  for (int64_t w = 0; w < kWords; w += 64) {
    chosen[w / 64] = packed(over + w);
    missing -= __builtin_popcountll(chosen[w / 64]);
  }
  for (int64_t w = 0; w < kWords && missing > 0; w += 64) {
    for (uint64_t bits = packed(equal + w); bits != 0 && missing > 0; bits &= bits - 1, --missing) {
      chosen[w / 64] |= bits & -bits;
    }
  }
  int64_t first = 0;
  while (packed(best + first) == 0) first += 64;
  return first + __builtin_ctzll(packed(best + first));
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
  return {find_code<Sums>, look_up,           to_columns,   find_extremes, round_table,
          find_limits,     Turned<Row>::turn, choose_words, add_codes};
}

}  // namespace
}  // namespace csrkern
