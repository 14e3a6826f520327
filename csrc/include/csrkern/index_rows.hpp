// Reads and checks the rows that users give to the index.
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

// For messages: a value, and the user's number of a row.
std::string shown(float value);
std::string in_row(const SparseRows& rows, int64_t i);

[[noreturn]] void throw_twice(const SparseRows& rows, int64_t i, const char* name, int32_t latent);

// Throws std::invalid_argument unless starts begin at 0 and never decrease. `name` is the name of
// the argument in messages, here and below. The caller checks that the last start is within the
// arrays, as it knows their sizes.
void check_starts(const SparseRows& rows, const char* name);

// Throws std::invalid_argument if an entry's latent is outside 0..dim-1 or its value is
// negative or not finite.
void check_row(const SparseRows& rows, int64_t i, const char* name);

// Returns 1 / L2 norm, or 0 for an empty row.
double inverse_norm(const float* values, int64_t n);

struct Entry {
  int32_t latent;
  float value;
};

// Returns the `most` largest entries of row i by value descending, then by latent, L2-normalized
// if `normalize`. Checks them, also for repeated latents.
std::vector<Entry> read_query(const SparseRows& rows, int64_t i, bool normalize, int64_t most);

// Returns the first of descending entries that make up a share of the squared norm.
std::vector<Entry> strongest(const std::vector<Entry>& entries, double share);

}  // namespace csrkern
