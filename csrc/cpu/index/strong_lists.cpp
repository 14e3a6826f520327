#include "index/strong_lists.hpp"

#include <algorithm>
#include <cstring>
#include <functional>

#include "csrkern/parallel.hpp"
#include "index/query.hpp"

namespace csrkern {
namespace {

// What a list keeps: values above `least`, and the first `equal` of those that are equal to it.
struct Bar {
  float least = 0;
  int64_t equal = 0;
};

// Calls body(document, stored value, value) for the postings of a list.
template <class Body>
void each_of_list(const IndexView& view, int64_t term, const Body& body) {
  const float unit = view.unit();
  const int64_t size = value_bytes(view.type);
  for (int64_t w = 0; w < view.n_windows; ++w) {
    const uint64_t* offset = view.offsets + term * view.n_windows + w;
    const uint64_t n = offset[1] - offset[0];
    const uint8_t* numbers = view.slice(offset[0]);
    const uint8_t* values = numbers + 2 * n;
    for (uint64_t i = 0; i < n; ++i) {
      body(w * view.window + number_at(numbers, i), values + size * i,
           value_at(values, i, view.type, unit));
    }
  }
}

Bar bar_of(const IndexView& view, int64_t term, int64_t most) {
  std::vector<float> values;
  each_of_list(view, term, [&](int64_t, const uint8_t*, float value) { values.push_back(value); });
  if (static_cast<int64_t>(values.size()) <= most) return {};
  const auto last = values.begin() + (most - 1);
  std::nth_element(values.begin(), last, values.end(), std::greater<float>());
  return {*last, std::count(values.begin(), last + 1, *last)};
}

// Calls body(document, stored value) for the postings of a list that are kept.
template <class Body>
void each_kept(const IndexView& view, int64_t term, Bar bar, const Body& body) {
  each_of_list(view, term, [&](int64_t doc, const uint8_t* stored, float value) {
    const bool last_kept = value == bar.least && bar.equal-- > 0;
    if (value > bar.least || last_kept) body(doc, stored);
  });
}

}  // namespace

StrongLists::StrongLists(const IndexView& whole, int num_threads) {
  const int32_t window = std::min(whole.window, kWindow);
  const int64_t n_windows = (whole.n_docs + window - 1) / window;
  const int64_t most = std::max<int64_t>(1, whole.n_docs / kDocuments);
  offsets_.resize(whole.n_terms * n_windows + 1);
  std::vector<Bar> bars(whole.n_terms);
  parallel_for(whole.n_terms, 16, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      bars[t] = bar_of(whole, t, most);
      each_kept(whole, t, bars[t],
                [&](int64_t doc, const uint8_t*) { ++offsets_[t * n_windows + doc / window + 1]; });
    }
  });
  for (size_t i = 1; i < offsets_.size(); ++i) offsets_[i] += offsets_[i - 1];

  const int64_t size = value_bytes(whole.type);
  postings_ = Buffer(offsets_.back() * posting_bytes(whole.type));
  parallel_for(whole.n_terms, 16, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      int64_t filling = -1;
      uint8_t *ids = nullptr, *values = nullptr;
      each_kept(whole, t, bars[t], [&](int64_t doc, const uint8_t* stored) {
        const int64_t slice = t * n_windows + doc / window;
        if (slice != filling) {
          filling = slice;
          ids = postings_.data() + offsets_[slice] * posting_bytes(whole.type);
          values = ids + 2 * (offsets_[slice + 1] - offsets_[slice]);
        }
        const auto number = static_cast<uint16_t>(doc % window);
        std::memcpy(ids, &number, 2);
        std::memcpy(values, stored, size);
        ids += 2;
        values += size;
      });
    }
  });
  IndexView view = whole;
  view.window = window;
  view.n_windows = n_windows;
  view.offsets = offsets_.data();
  view.postings = postings_.data();
  view.block = 0;
  view.maxima = nullptr;
  view.scales = nullptr;
  index_ = std::make_unique<Index>(view, true);
}

}  // namespace csrkern
