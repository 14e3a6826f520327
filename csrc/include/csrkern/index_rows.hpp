// Reading and checking the rows that users hand to the index.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "csrkern/index.hpp"

namespace csrkern {

inline std::pair<int64_t, int64_t> row_range(const SparseRows& rows, int64_t i) {
  if (rows.order != nullptr) i = rows.order[i];
  if (rows.starts == nullptr) return {i * rows.width, (i + 1) * rows.width};
  return {rows.starts[i], rows.starts[i + 1]};
}

// A value, and which row of the user's it is in, for messages.
std::string shown(float value);
std::string in_row(const SparseRows& rows, int64_t i);

[[noreturn]] void throw_twice(const SparseRows& rows, int64_t i, const char* name, int32_t latent);

// Throws std::invalid_argument unless starts begin at 0 and never decrease. `name` is the
// argument's name in messages, here and below. (That the last start is within the arrays is
// for the caller to check: it knows their sizes.)
void check_starts(const SparseRows& rows, const char* name);

// Throws std::invalid_argument if an entry's latent is outside 0..dim-1 or its value is
// negative or not finite.
void check_row(const SparseRows& rows, int64_t i, const char* name);

// 1 / L2 norm, or 0 for an empty row.
double unit_scale(const float* values, int64_t n);

struct Entry {
  int32_t latent;
  float value;
};

// The strongest `most` active entries of row i, checked, by value descending and then by latent,
// then brought to L2 norm 1 if `normalize`. Also throws if a latent comes twice.
std::vector<Entry> read_query(const SparseRows& rows, int64_t i, bool normalize, int64_t most);

}  // namespace csrkern
