#include "csrkern/similarity.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "csrkern/memory.hpp"
#include "csrkern/parallel.hpp"
#include "ops/similarity_rows.hpp"

namespace csrkern {
namespace {

// Rows that a thread takes at once: it visits a window for all of them before the next window, so
// that the window's postings come from cache.
constexpr int64_t kBlock = 32;

// Rows of a gradient that are copied together: as columns in memory they share cache lines and
// pages.
constexpr int64_t kTile = 16;
// Not a power of two, or the rows of a tile would compete for the same cache sets.
constexpr int64_t kStagedRow = Windows::kRows + 16;

// Asks for huge pages for memory that is about to be written completely. Without them, a fresh
// result of 64 MiB spends 25 of 29 ms in page faults.
void advise_huge_result(float* data, int64_t size) {
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data + size) / kPage * kPage;
  if (begin < end) advise_huge_pages(reinterpret_cast<void*>(begin), end - begin);
}

// Copies a tile of n x m elements to rows kStagedRow apart.
void stage(const float* from, const Strided& grad, int64_t n, int64_t m, float* to) {
  if (grad.col_stride == 1) {
    for (int64_t i = 0; i < n; ++i) std::copy_n(from + i * grad.row_stride, m, to + i * kStagedRow);
    return;
  }
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t i = 0; i < n; ++i) {
      to[i * kStagedRow + j] = from[i * grad.row_stride + j * grad.col_stride];
    }
  }
}

}  // namespace

void similarity(const Codes& a, const Postings& b, int64_t m, float* out, int num_threads) {
  check_latents(a, num_threads);
  const Windows windows(b, a.dim, m);
  advise_huge_result(out, a.n * m);
  parallel_for(a.n, kBlock, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t w = 0; w < windows.count(); ++w) {
      for (int64_t i = begin; i < end; ++i) {
        float* scores = out + i * m + windows.first(w);
        std::fill_n(scores, windows.size(w), 0.0f);
        windows.add_scores(a, i, w, scores);
      }
    }
  });
}

void similarity_backward(const Codes& a, const Postings& b, int64_t m, const Strided& grad,
                         float* grad_values, int num_threads) {
  check_latents(a, num_threads);
  const Windows windows(b, a.dim, m);
  std::vector<std::unique_ptr<float[]>> staged(std::max(num_threads, 1));
  parallel_for(a.n, kTile, num_threads, [&](int64_t begin, int64_t end, int thread) {
    auto& mine = staged[thread];
    if (!mine) mine.reset(new float[kTile * kStagedRow]);
    std::fill(grad_values + begin * a.k, grad_values + end * a.k, 0.0f);
    for (int64_t w = 0; w < windows.count(); ++w) {
      const float* from = grad.data + begin * grad.row_stride + windows.first(w) * grad.col_stride;
      stage(from, grad, end - begin, windows.size(w), mine.get());
      for (int64_t i = begin; i < end; ++i) {
        const float* scores = mine.get() + (i - begin) * kStagedRow;
        windows.add_gradient(a, i, w, scores, grad_values + i * a.k);
      }
    }
  });
}

}  // namespace csrkern
