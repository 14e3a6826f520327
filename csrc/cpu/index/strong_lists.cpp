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

Bar bar_of(const IndexView& view, int64_t term, int64_t most) {
  std::vector<float> values;
  each_posting(view, term, [&](int64_t, float value) { values.push_back(value); });
  if (static_cast<int64_t>(values.size()) <= most) return {};
  const auto last = values.begin() + (most - 1);
  std::nth_element(values.begin(), last, values.end(), std::greater<float>());
  return {*last, std::count(values.begin(), last + 1, *last)};
}

// Calls body(slice, document, stored value) for the postings of a list that are kept.
template <class Body>
void each_kept(const IndexView& view, int64_t term, Bar bar, const Body& body) {
  const float unit = view.unit();
  for (int64_t w = 0; w < view.n_windows; ++w) {
    each_stored(view, term, w, [&](int64_t doc, const uint8_t* stored) {
      const float value = value_at(stored, 0, view.type, unit);
      const bool kept = value > bar.least || (value == bar.least && bar.equal-- > 0);
      if (kept) body(term * view.n_windows + w, doc, stored);
    });
  }
}

}  // namespace

StrongLists::StrongLists(const IndexView& whole, int num_threads)
    : offsets_(whole.n_terms * whole.n_windows + 1) {
  const int64_t most = std::max<int64_t>(1, whole.n_docs / kDocuments);
  std::vector<Bar> bars(whole.n_terms);
  parallel_for(whole.n_terms, 16, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      bars[t] = bar_of(whole, t, most);
      each_kept(whole, t, bars[t],
                [&](int64_t slice, int64_t, const uint8_t*) { ++offsets_[slice + 1]; });
    }
  });
  for (size_t i = 1; i < offsets_.size(); ++i) offsets_[i] += offsets_[i - 1];

  const int64_t size = value_bytes(whole.type);
  postings_ = Buffer(offsets_.back() * posting_bytes(whole.type));
  parallel_for(whole.n_terms, 16, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      int64_t filling = -1;
      uint8_t *ids = nullptr, *values = nullptr;
      each_kept(whole, t, bars[t], [&](int64_t slice, int64_t doc, const uint8_t* stored) {
        if (slice != filling) {
          filling = slice;
          ids = postings_.data() + offsets_[slice] * posting_bytes(whole.type);
          values = ids + 2 * (offsets_[slice + 1] - offsets_[slice]);
        }
        const auto local = static_cast<uint16_t>(doc % whole.window);
        std::memcpy(ids, &local, 2);
        std::memcpy(values, stored, size);
        ids += 2;
        values += size;
      });
    }
  });
  IndexView view = whole;
  view.offsets = offsets_.data();
  view.postings = postings_.data();
  view.block = 0;
  view.maxima = nullptr;
  view.scales = nullptr;
  index_ = std::make_unique<Index>(view, true);
}

}  // namespace csrkern
