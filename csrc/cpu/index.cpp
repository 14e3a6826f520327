#include "csrkern/index.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "csrkern/index_kernels.hpp"
#include "csrkern/parallel.hpp"

namespace csrkern {
namespace {

[[noreturn]] void damaged(const std::string& what) {
  throw std::invalid_argument("the index is damaged: " + what);
}

// Local numbers ascend and stay inside the window; values are positive and finite.
bool good_segment(const uint8_t* segment, int64_t n, int64_t docs, ValueType type) {
  const uint8_t* values = segment + 2 * n;
  bool good = true;
  int64_t last = -1;
  for (int64_t i = 0; i < n; ++i) {
    uint16_t id;
    __builtin_memcpy(&id, segment + 2 * i, 2);
    good &= id > last;
    last = id;
    if (type == ValueType::float16) {
      uint16_t half;
      __builtin_memcpy(&half, values + 2 * i, 2);
      good &= half > 0 && half < 0x7c00;
    } else {
      uint32_t bits;
      __builtin_memcpy(&bits, values + 4 * i, 4);
      good &= bits > 0 && bits < 0x7f800000;
    }
  }
  return good && last < docs;
}

}  // namespace

Index::Index(const IndexView& view, bool trusted) : view_(view), finder_(view.terms, 0, 1) {
  const int64_t segments = view.n_terms * view.n_windows;
  for (int64_t t = 0; t < view.n_terms; ++t) {
    const int32_t above = t == 0 ? -1 : view.terms[t - 1];
    if (view.terms[t] <= above || view.terms[t] >= view.dim) {
      damaged("its latents do not ascend within 0.." + std::to_string(view.dim - 1));
    }
  }
  bool good = view.offsets[0] == 0;
  for (int64_t i = 0; i < segments; ++i) {
    // A difference that wraps around is larger than any window.
    good &= view.offsets[i + 1] - view.offsets[i] <= static_cast<uint64_t>(view.window);
  }
  if (!good) damaged("its offsets do not ascend by at most a window's documents");
  for (int64_t i = 1; view.ids != nullptr && i < view.n_docs; ++i) {
    ids_ascend_ &= view.ids[i - 1] < view.ids[i];
  }
  finder_ = TermFinder(view.terms, view.n_terms, view.dim);
  if (!trusted) verified_.reset(new std::atomic<uint8_t>[view.n_terms]());
}

void Index::verify_term(int64_t term) const {
  if (verified_ == nullptr || verified_[term].load(std::memory_order_acquire)) return;
  const uint64_t* offsets = view_.offsets + term * view_.n_windows;
  const uint8_t* list = view_.segment(offsets[0]);
  bool good = crc32c(list, (offsets[view_.n_windows] - offsets[0]) * posting_bytes(view_.type)) ==
              view_.checksums[term];
  for (int64_t w = 0; good && w < view_.n_windows; ++w) {
    const int64_t docs = std::min<int64_t>(view_.window, view_.n_docs - w * view_.window);
    good = good_segment(view_.segment(offsets[w]), offsets[w + 1] - offsets[w], docs, view_.type);
  }
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
  const int64_t segments = view_.n_terms * view_.n_windows;
  const auto each_posting = [&](const auto& body) {
    for (int64_t s = 0; s < segments; ++s) {
      const int64_t n = view_.offsets[s + 1] - view_.offsets[s];
      const int64_t base = s % view_.n_windows * view_.window;
      const uint8_t* ids = view_.segment(view_.offsets[s]);
      for (int64_t i = 0; i < n; ++i) {
        uint16_t id;
        __builtin_memcpy(&id, ids + 2 * i, 2);
        body(base + id, s / view_.n_windows, ids + 2 * n, i);
      }
    }
  };
  std::fill(starts, starts + view_.n_docs + 1, 0);
  each_posting([&](int64_t doc, int64_t, const uint8_t*, int64_t) { ++starts[doc + 1]; });
  for (int64_t i = 0; i < view_.n_docs; ++i) starts[i + 1] += starts[i];
  std::vector<int64_t> next(starts, starts + view_.n_docs);
  each_posting([&](int64_t doc, int64_t term, const uint8_t* list, int64_t i) {
    const int64_t at = next[doc]++;
    latents[at] = view_.terms[term];
    if (view_.type == ValueType::float16) {
      uint16_t half;
      __builtin_memcpy(&half, list + 2 * i, 2);
      values[at] = half_to_float(half);
    } else {
      __builtin_memcpy(values + at, list + 4 * i, 4);
    }
  });
}

}  // namespace csrkern
