#include <cmath>
#include <limits>

#include "csrkern/parallel.hpp"
#include "index/query.hpp"

namespace csrkern {

void find_maxima(IndexView view, uint8_t* maxima, float* scales, int num_threads) {
  parallel_for(view.n_terms, 16, num_threads, [&](int64_t begin, int64_t end, int) {
    std::vector<float> largest(view.block_pitch());
    for (int64_t t = begin; t < end; ++t) {
      std::fill(largest.begin(), largest.end(), 0.0f);
      float top = 0;
      each_posting(view, t, [&](int64_t doc, float value) {
        float& here = largest[doc / view.block];
        here = std::max(here, value);
        top = std::max(top, value);
      });
      float scale = static_cast<float>(top / 255.0);
      while (255.0 * scale < top) scale = std::nextafter(scale, std::numeric_limits<float>::max());
      scales[t] = scale;
      uint8_t* row = maxima + t * view.block_pitch();
      for (int64_t b = 0; b < view.block_pitch(); ++b) {
        int code = std::min(255, static_cast<int>(largest[b] / static_cast<double>(scale)));
        if (code * static_cast<double>(scale) < largest[b]) ++code;
        row[b] = static_cast<uint8_t>(code);
      }
    }
  });
}

void BlockBounds::compute(const IndexView& view, const std::vector<QueryTerm>& terms,
                          double share) {
  share_ = share;
  n_blocks_ = view.n_blocks();
  const int64_t pitch = view.block_pitch();
  const int m = static_cast<int>(terms.size());
  bounds_.resize(pitch);
  rows_.resize(m);
  weights_.resize(m);
  double total = 0;
  for (const QueryTerm& t : terms) total += static_cast<double>(t.weight) * view.scales[t.term];
  // Chosen such that the weights, rounded up, sum to less than 65,535 - m: no sum overflows.
  steps_per_score_ = (65'534.0 - 2 * m) / (256 * total);
  for (int t = 0; t < m; ++t) {
    const double weight = static_cast<double>(terms[t].weight) * view.scales[terms[t].term];
    weights_[t] = static_cast<uint16_t>(std::ceil(256 * steps_per_score_ * weight));
    rows_[t] = view.maxima_of(terms[t].term);
  }
  // A bound loses less than 1 in each of its m products by truncation.
  rounding_ = m;
  kernels().index.add_bounds(rows_.data(), weights_.data(), m, pitch, bounds_.data());
  std::fill(bounds_.begin() + n_blocks_, bounds_.end(), uint16_t{0});
}

uint16_t BlockBounds::least(uint32_t bar) const {
  const double score = float_of(bar) / share_;
  if (!(score <= std::numeric_limits<float>::max())) return 1;
  // A float32 sum of m products exceeds the true sum by less than one part in 2^23 / (m + 1),
  // or, where products are subnormal, by less than m of the smallest subnormals.
  const double slack = (rounding_ + 2) * 0x1p-22;
  const double sum = score * (1 - slack) - rounding_ * 0x1p-148;
  const double least = std::floor(steps_per_score_ * sum * (1 - 1e-9) - rounding_);
  return static_cast<uint16_t>(std::min(std::max(least, 1.0), 65'535.0));
}

void BlockBounds::take_best(int64_t count, std::vector<int32_t>& blocks) {
  constexpr int kBins = 1024;
  uint32_t bins[kBins] = {};
  for (int64_t b = 0; b < n_blocks_; ++b) ++bins[bounds_[b] / 64];
  int bin = kBins - 1;
  for (int64_t above = bins[bin]; above < count && bin > 0;) above += bins[--bin];
  const uint16_t least = static_cast<uint16_t>(std::max(bin * 64, 1));
  blocks.resize(n_blocks_);
  const int64_t found =
      kernels().index.find_bounds(bounds_.data(), n_blocks_, least, blocks.data());
  blocks.resize(std::min(found, 2 * count));
  for (int32_t b : blocks) bounds_[b] = 0;
}

void BlockBounds::find(uint32_t bar, std::vector<int32_t>& blocks) const {
  blocks.resize(n_blocks_);
  blocks.resize(kernels().index.find_bounds(bounds_.data(), n_blocks_, least(bar), blocks.data()));
}

}  // namespace csrkern
