#include "csrkern/index.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "csrkern/costs.hpp"
#include "csrkern/parallel.hpp"
#include "index/dense_lists.hpp"
#include "index/directory.hpp"
#include "index/fine_cells.hpp"
#include "index/forward.hpp"
#include "index/query.hpp"
#include "index/rounded.hpp"
#include "index/sample.hpp"
#include "index/strong_lists.hpp"
#include "isa/kernels.hpp"

namespace csrkern {
namespace {

// Costs in nanoseconds: of a term and a document of a dense list that is made; of the search for a
// document in a list, or in a group of one.
constexpr double kNsPerDenseTerm = 2, kNsPerDenseDocument = 1, kNsPerSearch = 40;

[[noreturn]] void damaged(const std::string& what) {
  throw std::invalid_argument("the index is damaged: " + what);
}

bool good_value(const uint8_t* values, int64_t i, ValueType type) {
  if (type == ValueType::float16) {
    uint16_t half;
    std::memcpy(&half, values + 2 * i, 2);
    return half > 0 && half < 0x7c00;
  }
  if (is_squares(type)) return true;
  uint32_t bits;
  std::memcpy(&bits, values + 4 * i, 4);
  return bits > 0 && bits < 0x7f800000;
}

// Returns whether n local numbers ascend within the window's documents.
bool ascends(const uint8_t* ids, uint64_t n, int64_t docs) {
  bool good = true;
  int64_t last = -1;
  for (uint64_t i = 0; i < n; ++i) {
    good &= number_at(ids, i) > last;
    last = number_at(ids, i);
  }
  return good && last < docs;
}

// Returns whether the groups are as many postings as there are, ascend, and share no document.
bool good_groups(const uint8_t* slice, uint64_t n, int64_t docs) {
  const GroupedSlice groups(slice, n);
  uint64_t counted = 0;
  for (int number = 0; number < kGroups; ++number) counted += groups.count(number);
  if (counted != n) return false;
  bool good = true;
  std::vector<bool> seen(docs);
  each_group(slice, n, [&](uint8_t, const uint8_t* ids, uint32_t count) {
    good = good && ascends(ids, count, docs);  // so all are below `docs`
    for (uint32_t i = 0; good && i < count; ++i) {
      good = !seen[number_at(ids, i)];
      seen[number_at(ids, i)] = true;
    }
  });
  return good;
}

// Returns whether local numbers ascend within the window's documents, and values are positive and
// finite.
bool good_slice(const IndexView& view, const uint8_t* slice, uint64_t n, int64_t docs) {
  if (is_grouped(view.type)) return n == 0 || good_groups(slice, n, docs);
  bool good = true;
  for (uint64_t i = 0; i < n; ++i) good &= good_value(slice + 2 * n, i, view.type);
  return good && ascends(slice, n, docs);
}

// Returns whether no value is above the maximum of its block.
bool good_maxima(const IndexView& view, int64_t term) {
  const double scale = view.scales[term];
  const uint8_t* maxima = view.maxima_of(term);
  bool good = scale > 0 && std::isfinite(scale);
  each_posting(view, term, [&](int64_t doc, float value) {
    good &= value <= maxima[doc / view.block] * scale;
  });
  return good;
}

// Returns the place of a local number among n ascending ones, or n.
uint64_t place_of(uint16_t local, const uint8_t* ids, uint64_t n) {
  uint64_t begin = 0, end = n;  // of the numbers that may be `local`
  while (begin < end) {
    const uint64_t middle = begin + (end - begin) / 2;
    if (number_at(ids, middle) < local) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin < n && number_at(ids, begin) == local ? begin : n;
}

// Returns the value of a local number in a slice of n postings, 0 if it is not there.
float look_up(const IndexView& view, const uint8_t* slice, uint64_t n, uint16_t local) {
  if (n == 0) return 0;
  if (!is_grouped(view.type)) {
    const uint64_t place = place_of(local, slice, n);
    return place == n ? 0 : value_at(slice + 2 * n, place, view.type, view.unit());
  }
  float value = 0;
  each_group(slice, n, [&](uint8_t number, const uint8_t* ids, uint32_t count) {
    if (place_of(local, ids, count) < count) value = square(number, view.unit());
  });
  return value;
}

// Appends the entries of a document, found in each list by binary searches. The lists must have
// been checked.
void look_up_row(const IndexView& view, int64_t doc, OwnedRows& rows) {
  const int64_t w = doc / view.window;
  const auto local = static_cast<uint16_t>(doc % view.window);
  for (int64_t t = 0; t < view.n_terms; ++t) {
    const uint64_t* offset = view.offsets + t * view.n_windows + w;
    const float value = look_up(view, view.slice(offset[0]), view.n_in_slice(offset), local);
    if (value == 0) continue;
    rows.latents.push_back(view.terms[t]);
    rows.values.push_back(value);
  }
  rows.starts.push_back(static_cast<int64_t>(rows.latents.size()));
}

}  // namespace

Index::Index(const IndexView& view, bool trusted) : view_(view), finder_(view.terms, 0, 1) {
  const int64_t slices = view.n_terms * view.n_windows;
  for (int64_t t = 0; t < view.n_terms; ++t) {
    const int32_t above = t == 0 ? -1 : view.terms[t - 1];
    if (view.terms[t] <= above || view.terms[t] >= view.dim) {
      damaged("its latents do not ascend within 0.." + std::to_string(view.dim - 1));
    }
  }
  if (is_squares(view.type) && (view.exponent < kLeastExponent || view.exponent > kMostExponent)) {
    damaged("its values are too large or too small");
  }
  if (is_grouped(view.type) && view.block > 0) damaged("lists in groups have no blocks");
  bool good = view.offsets[0] == 0;
  for (int64_t i = 0; i < slices; ++i) {
    const uint64_t n = view.n_in_slice(view.offsets + i);
    // A negative difference wraps around and is larger than any window.
    good &= n <= static_cast<uint64_t>(view.window);
    if (is_grouped(view.type)) {
      good &= words_of_postings(n) == view.offsets[i + 1] - view.offsets[i];
    }
  }
  if (!good) damaged("its offsets do not ascend by at most a window's documents");
  for (int64_t i = 1; view.ids != nullptr && i < view.n_docs; ++i) {
    ids_ascend_ &= view.ids[i - 1] < view.ids[i];
  }
  finder_ = TermFinder(view.terms, view.n_terms, view.dim);
  if (!trusted) verified_.reset(new std::atomic<uint8_t>[view.n_terms]());
}

Index::~Index() = default;

void Index::verify_term(int64_t term) const {
  if (verified_ == nullptr || verified_[term].load(std::memory_order_acquire)) return;
  const uint64_t* offsets = view_.offsets + term * view_.n_windows;
  bool good = checksum_of_term(view_, term) == view_.checksums[term];
  for (int64_t w = 0; good && w < view_.n_windows; ++w) {
    const int64_t docs = std::min<int64_t>(view_.window, view_.n_docs - w * view_.window);
    good = good_slice(view_, view_.slice(offsets[w]), view_.n_in_slice(offsets + w), docs);
  }
  if (good && view_.block > 0) good = good_maxima(view_, term);
  if (!good) damaged("the postings of latent " + std::to_string(view_.terms[term]));
  verified_[term].store(1, std::memory_order_release);
}

void Index::verify(int num_threads) const {
  parallel_for(view_.n_terms, 16, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) verify_term(t);
  });
}

void Index::rows(int64_t* starts, int32_t* latents, float* values) const {
  verify(1);
  std::fill(starts, starts + view_.n_docs + 1, 0);
  for (int64_t t = 0; t < view_.n_terms; ++t) {
    each_posting(view_, t, [&](int64_t doc, float) { ++starts[doc + 1]; });
  }
  for (int64_t i = 0; i < view_.n_docs; ++i) starts[i + 1] += starts[i];
  std::vector<int64_t> next(starts, starts + view_.n_docs);
  for (int64_t t = 0; t < view_.n_terms; ++t) {
    each_posting(view_, t, [&](int64_t doc, float value) {
      const int64_t at = next[doc]++;
      latents[at] = view_.terms[t];
      values[at] = value;
    });
  }
}

OwnedRows Index::rows_of(const int64_t* docs, int64_t n) const {
  OwnedRows rows;
  rows.starts.push_back(0);
  const uint64_t postings = view_.offsets[view_.n_terms * view_.n_windows];
  const int64_t groups = is_grouped(view_.type) ? kGroups : 1;
  const double searches = kNsPerSearch * static_cast<double>(n * view_.n_terms * groups);
  const bool few = forward_.get() == nullptr &&
                   searches < costs().forward_posting * static_cast<double>(postings);
  if (few) verify(1);
  for (int64_t i = 0; i < n; ++i) {
    if (few) {
      look_up_row(view_, docs[i], rows);
    } else {
      append_row(forward(1), view_.terms, docs[i], rows);
    }
  }
  return rows;
}

int64_t Index::checked_term(int32_t latent) const {
  const int64_t term = finder_.find(latent);
  if (term >= 0) verify_term(term);
  return term;
}

float Index::value(int64_t doc, int32_t latent) const {
  const int64_t term = checked_term(latent);
  if (term < 0) return 0;
  float found = 0;
  const int64_t window = doc / view_.window;
  each_posting(view_, term, window, [&](int64_t at, float value) {
    if (at == doc) found = value;
  });
  return found;
}

const ForwardIndex& Index::forward(int num_threads) const {
  return forward_.get_or_make([&] {
    verify(num_threads);
    return ForwardIndex(view_, num_threads);
  });
}

const Index& Index::strong(int num_threads) const {
  if (is_grouped(view_.type)) return *this;
  const auto make = [&] {
    verify(num_threads);
    return StrongLists(view_, num_threads);
  };
  return strong_.get_or_make(make).index();
}

const FineCells& Index::cells() const {
  return cells_.get_or_make([&] { return FineCells(view_); });
}

const Sample& Index::sample(int num_threads) const {
  const ForwardIndex& rows = forward(num_threads);
  return sample_.get_or_make([&] { return Sample(view_, rows, num_threads); });
}

int64_t Index::forward_bytes() const {
  return forward_.bytes() + rounded_.bytes() + directory_.bytes() + strong_.bytes() +
         cells_.bytes() + sample_.bytes();
}

const ForwardIndex* Index::forward_if_worth(int64_t ns_lost) const {
  if (const ForwardIndex* made = forward_.get()) return made;
  const uint64_t postings = view_.offsets[view_.n_terms * view_.n_windows];
  const double cost = costs().forward_posting * static_cast<double>(postings);
  return forward_.lose(ns_lost) - ns_lost < cost ? nullptr : &forward(1);
}

const RoundedRows* Index::rounded_if_worth(int64_t ns_lost, int num_threads) const {
  if (const RoundedRows* made = rounded()) return made;
  const uint64_t postings = view_.offsets[view_.n_terms * view_.n_windows];
  const bool has_forward = forward_.get() != nullptr;
  const double cost = (has_forward ? 0 : costs().forward_posting) + costs().rounded_posting;
  if (rounded_.lose(ns_lost) < cost * static_cast<double>(postings)) return nullptr;
  const ForwardIndex& rows = forward(num_threads);
  return &rounded_.get_or_make([&] { return RoundedRows(rows, view_.n_docs, num_threads); });
}

const DenseLists* Index::dense_if_worth(double ns_lost) const {
  if (const DenseLists* made = dense_.get()) return made;
  const int64_t lost = dense_.lose(static_cast<int64_t>(ns_lost));
  const auto takes = [this](int64_t t) {
    const uint64_t* offsets = view_.offsets + t * view_.n_windows;
    return DenseLists::takes(view_, offsets[view_.n_windows] - offsets[0]);
  };
  double cost = kNsPerDenseTerm * static_cast<double>(view_.n_terms);
  if (lost < cost) return nullptr;
  for (int64_t t = 0; t < view_.n_terms; ++t) {
    if (takes(t)) cost += kNsPerDenseDocument * static_cast<double>(view_.n_docs);
  }
  if (lost < cost) return nullptr;
  return &dense_.get_or_make([&] {
    for (int64_t t = 0; t < view_.n_terms; ++t) {
      if (takes(t)) verify_term(t);
    }
    return DenseLists(view_);
  });
}

int64_t Index::dense_bytes() const { return dense_.bytes(); }

const Directory* Index::directory_if_worth() const {
  if (const Directory* made = directory_.get()) return made;
  const uint64_t postings = view_.offsets[view_.n_terms * view_.n_windows];
  const double cost = costs().directory_posting * static_cast<double>(postings);
  if (verified_ != nullptr && directory_.ns_lost() < cost) {
    return nullptr;
  }
  return &directory();
}

const Directory& Index::directory() const {
  return directory_.get_or_make([&] {
    verify(1);
    return Directory(view_, 1);
  });
}

}  // namespace csrkern
