#include "csrkern/fine.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "csrkern/parallel.hpp"
#include "isa/kernels.hpp"

namespace csrkern {
namespace {

// Rows that share a block while it is in the cache.
constexpr int64_t kRowsTogether = 64;

// Codes the books of one part for one row.
class Beam {
 public:
  Beam(const FineEncoding& args)
      : args_(args),
        books_(args.books / args.parts),
        costs_(args.beam * kWords),
        order_(args.beam * kWords),
        kept_(args.beam * books_),
        spare_(args.beam * books_) {}

  void encode(int64_t row, int64_t part) {
    const float* products = args_.products + (row * args_.books + part * books_) * kWords;
    const float* squares = args_.squares + part * books_ * kWords;
    int64_t n_kept = 1;
    std::vector<float> sums(1, 0.0f);
    for (int64_t m = 0; m < books_; ++m) {
      for (int64_t b = 0; b < n_kept; ++b) extend(part, m, b, sums[b], products, squares);
      n_kept = keep_best(m, n_kept, sums);
    }
    std::copy_n(kept_.data(), books_, args_.codes + row * args_.books + part * books_);
  }

 private:
  // Costs of beginning b with every word of book m: a squared error, less that of no words.
  void extend(int64_t part, int64_t m, int64_t b, float sum, const float* products,
              const float* squares) {
    float* costs = costs_.data() + b * kWords;
    for (int64_t w = 0; w < kWords; ++w) {
      costs[w] = squares[m * kWords + w] - 2 * products[m * kWords + w];
    }
    for (int64_t l = 0; l < m; ++l) {
      const int64_t word = (part * books_ + l) * kWords + kept_[b * books_ + l];
      const float* crossed = args_.crossed + (word * books_ + m) * kWords;
      for (int64_t w = 0; w < kWords; ++w) costs[w] += 2 * crossed[w];
    }
    for (int64_t w = 0; w < kWords; ++w) costs[w] += sum;
  }

  // Keeps the best of n_kept beginnings with a word each; returns how many.
  int64_t keep_best(int64_t m, int64_t n_kept, std::vector<float>& sums) {
    const int64_t n = n_kept * kWords, wanted = std::min(args_.beam, n);
    std::iota(order_.begin(), order_.begin() + n, 0);
    std::partial_sort(order_.begin(), order_.begin() + wanted, order_.begin() + n,
                      [&](int64_t a, int64_t b) {
                        return costs_[a] != costs_[b] ? costs_[a] < costs_[b] : a < b;
                      });
    sums.resize(wanted);
    for (int64_t i = 0; i < wanted; ++i) {
      const int64_t beginning = order_[i] / kWords;
      std::copy_n(kept_.data() + beginning * books_, m, spare_.data() + i * books_);
      spare_[i * books_ + m] = static_cast<uint8_t>(order_[i] % kWords);
      sums[i] = costs_[order_[i]];
    }
    kept_.swap(spare_);
    return wanted;
  }

  const FineEncoding& args_;
  int64_t books_;
  std::vector<float> costs_;  // [beam, kWords]
  std::vector<int64_t> order_;
  std::vector<uint8_t> kept_, spare_;  // [beam, books of a part]
};

}  // namespace

void unit_rows(const float* x, int64_t n, int64_t width, const float* center, float* out,
               int num_threads) {
  parallel_for(n, kRowsTogether, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      kernels().unit_row(x + i * width, width, center, out + i * width);
    }
  });
}

bool within(const float* x, int64_t n, float limit) {
  int32_t beyond = 0;
  for (int64_t i = 0; i < n; ++i) beyond |= !(std::fabs(x[i]) <= limit);
  return beyond == 0;
}

void block_products(const BlockProducts& args, int num_threads) {
  const int64_t grain = std::clamp<int64_t>(args.n / num_threads, 1, kRowsTogether);
  parallel_for(args.n, grain, num_threads, [&](int64_t begin, int64_t end, int) {
    kernels().block_products(args, begin, end);
  });
}

void fine_encode(const FineEncoding& args, int num_threads) {
  parallel_for(args.n, 16, num_threads, [&](int64_t begin, int64_t end, int) {
    Beam beam(args);
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t part = 0; part < args.parts; ++part) beam.encode(row, part);
    }
  });
}

}  // namespace csrkern
