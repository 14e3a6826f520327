#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>

#include "csrkern/index_rows.hpp"

namespace csrkern {
namespace {

// 16 MB of table; beyond, 20 steps of a binary search cost less than the cache misses.
constexpr int32_t kLargestTable = 1 << 22;
// A small index over many latents uses the search: a table would be most of its memory.
constexpr int64_t kLatentsPerTerm = 16;

// Sorts by value descending, then by latent. Most queries are already sorted.
void put_in_order(std::vector<Entry>& entries) {
  const auto before = [](const Entry& a, const Entry& b) {
    return a.value > b.value || (a.value == b.value && a.latent < b.latent);
  };
  if (!std::is_sorted(entries.begin(), entries.end(), before)) {
    std::sort(entries.begin(), entries.end(), before);
  }
}

}  // namespace

std::string shown(float value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", static_cast<double>(value));
  return text;
}

std::string in_row(const SparseRows& rows, int64_t i) {
  return " in row " + std::to_string(rows.order == nullptr ? i : rows.order[i]);
}

void throw_twice(const SparseRows& rows, int64_t i, const char* name, int32_t latent) {
  throw std::invalid_argument(std::string(name) + ": latent " + std::to_string(latent) +
                              " occurs twice" + in_row(rows, i) + "; sum or drop duplicates first");
}

void check_starts(const SparseRows& rows, const char* name) {
  if (rows.starts == nullptr) return;
  bool ordered = rows.starts[0] == 0;
  for (int64_t i = 0; i < rows.n; ++i) ordered &= rows.starts[i] <= rows.starts[i + 1];
  if (!ordered) {
    throw std::invalid_argument(std::string(name) +
                                ": expected row starts from 0 that never decrease");
  }
}

void check_row(const SparseRows& rows, int64_t i, const char* name) {
  const auto [begin, end] = row_range(rows, i);
  constexpr float kMost = std::numeric_limits<float>::max();
  const float least = rows.is_signed ? -kMost : 0;
  bool good = true;
  for (int64_t j = begin; j < end; ++j) {
    good &= static_cast<uint32_t>(rows.indices[j]) < static_cast<uint32_t>(rows.dim);
    good &= rows.values[j] >= least && rows.values[j] <= kMost;  // false for NaN too
  }
  if (good) return;
  for (int64_t j = begin; j < end; ++j) {
    const float value = rows.values[j];
    if (rows.indices[j] < 0 || rows.indices[j] >= rows.dim) {
      throw std::invalid_argument(std::string(name) + ": expected latents in 0.." +
                                  std::to_string(rows.dim - 1) + ", got " +
                                  std::to_string(rows.indices[j]) + in_row(rows, i));
    }
    if (!(value >= least && value <= kMost)) {
      throw std::invalid_argument(std::string(name) + ": expected finite values" +
                                  (rows.is_signed ? "" : " that are not negative") + ", got " +
                                  shown(value) + in_row(rows, i));
    }
  }
}

double inverse_norm(const float* values, int64_t n) {
  double square = 0;
  for (int64_t j = 0; j < n; ++j) square += static_cast<double>(values[j]) * values[j];
  return square > 0 ? 1 / std::sqrt(square) : 0;
}

std::vector<Entry> read_query(const SparseRows& rows, int64_t i, bool normalize, int64_t most) {
  check_row(rows, i, "queries");
  const auto [begin, end] = row_range(rows, i);
  std::vector<Entry> entries;
  std::vector<int32_t> latents;
  entries.reserve(end - begin);
  latents.reserve(end - begin);
  for (int64_t j = begin; j < end; ++j) {
    if (rows.values[j] == 0) continue;
    entries.push_back({rows.indices[j], rows.values[j]});
    latents.push_back(rows.indices[j]);
  }
  std::sort(latents.begin(), latents.end());
  const auto twice = std::adjacent_find(latents.begin(), latents.end());
  if (twice != latents.end()) {
    throw_twice(rows, i, "queries", *twice);
  }
  put_in_order(entries);
  if (static_cast<int64_t>(entries.size()) > most) entries.resize(most);
  if (!normalize) return entries;
  double square = 0;
  for (const Entry& e : entries) square += static_cast<double>(e.value) * e.value;
  const double scale = square > 0 ? 1 / std::sqrt(square) : 0;
  for (Entry& e : entries) e.value = static_cast<float>(e.value * scale);
  put_in_order(entries);  // different values may have become equal
  while (!entries.empty() && entries.back().value == 0) entries.pop_back();  // or 0
  return entries;
}

TermFinder::TermFinder(const int32_t* terms, int64_t n_terms, int32_t dim)
    : terms_(terms), n_terms_(n_terms) {
  if (dim > kLargestTable || dim / kLatentsPerTerm > n_terms) return;
  table_.assign(dim, -1);
  for (int64_t t = 0; t < n_terms; ++t) table_[terms[t]] = static_cast<int32_t>(t);
}

int64_t TermFinder::search(int32_t latent) const {
  const int32_t* found = std::lower_bound(terms_, terms_ + n_terms_, latent);
  return found != terms_ + n_terms_ && *found == latent ? found - terms_ : -1;
}

std::vector<Entry> strongest(const std::vector<Entry>& entries, double share) {
  double total = 0, sum = 0;
  for (const Entry& e : entries) total += static_cast<double>(e.value) * e.value;
  size_t n = 0;
  while (n < entries.size() && sum < share * total) {
    sum += static_cast<double>(entries[n].value) * entries[n].value;
    ++n;
  }
  return {entries.begin(), entries.begin() + n};
}

}  // namespace csrkern
