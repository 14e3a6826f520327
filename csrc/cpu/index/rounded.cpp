#include "index/rounded.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

#include "csrkern/parallel.hpp"

namespace csrkern {
namespace {

constexpr int64_t kRowsAtOnce = 1024;

// Returns the largest of what body(row, values) returns for all rows, or 0.
double largest_of_rows(const ForwardIndex& forward, int64_t n_docs, int num_threads,
                       const std::function<double(int64_t, const float*)>& body) {
  std::vector<double> of_thread(num_threads, 0);
  parallel_for(n_docs, kRowsAtOnce, num_threads, [&](int64_t begin, int64_t end, int thread) {
    std::vector<float> values(forward.longest());
    for (int64_t doc = begin; doc < end; ++doc) {
      forward.read(forward.row(doc), values.data());
      of_thread[thread] = std::max(of_thread[thread], body(doc, values.data()));
    }
  });
  return *std::max_element(of_thread.begin(), of_thread.end());
}

}  // namespace

RoundedRows::RoundedRows(const ForwardIndex& forward, int64_t n_docs, int num_threads)
    : forward_(forward), numbers_(forward.n_entries() + 1) {
  const auto largest = [&](const auto& of_row) {
    return largest_of_rows(forward, n_docs, num_threads, of_row);
  };
  const auto end = [&](int64_t doc, const float* values) { return values + forward.row(doc).n; };
  const double value = largest([&](int64_t doc, const float* values) {
    return std::accumulate(values, end(doc, values), 0.0f,
                           [](float a, float b) { return std::max(a, b); });
  });
  if (value == 0) return;
  scale_ = kRowNumber / value;
  norm_ = largest([&](int64_t doc, const float* values) {
    double squares = 0;
    for (const float* v = values; v < end(doc, values); ++v) squares += *v * scale_ * *v * scale_;
    return std::sqrt(squares);
  });
  error_ = largest([&](int64_t doc, const float* values) {
    uint8_t* numbers = numbers_.data() + forward.first_entry(doc);
    double squares = 0;
    for (int64_t j = 0; j < forward.row(doc).n; ++j) {
      const double scaled = values[j] * scale_;
      numbers[j] = static_cast<uint8_t>(std::lround(scaled));
      squares += (scaled - numbers[j]) * (scaled - numbers[j]);
    }
    return std::sqrt(squares);
  });
}

ByteRows RoundedRows::rows() const { return forward_.byte_rows(numbers_.data()); }

}  // namespace csrkern
