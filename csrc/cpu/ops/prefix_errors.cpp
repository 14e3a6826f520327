#include "csrkern/prefix_errors.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "csrkern/parallel.hpp"
#include "isa/kernels.hpp"

namespace csrkern {
namespace {

// Rows whose squares are added in float32 before they go on in double.
constexpr int64_t kRowsInFloat = 64;
// Pieces of the rows, each with sums of its own, at most.
constexpr int64_t kPieces = 64;
// Floats that hold the inner products of stripes: 4 MB.
constexpr int64_t kDots = 1 << 20;

int64_t stripes_of(int64_t d) { return (d + kPrefixColumns - 1) / kPrefixColumns; }

}  // namespace

void prefix_errors(const PrefixErrors& args, int num_threads) {
  check_latents(args.codes, num_threads);
  const int64_t n = args.codes.n, k = args.codes.k, stripes = stripes_of(args.d);
  const int64_t rows = std::max(kRowsInFloat, (n + kPieces - 1) / kPieces);
  const int64_t pieces = (n + rows - 1) / rows;
  std::vector<double> sums(pieces * stripes * k);
  // A stripe of the table stays in a cache while all rows pass.
  parallel_for(pieces * stripes, 1, num_threads, [&](int64_t index, int64_t, int) {
    const int64_t first = index % pieces * rows, last = std::min(first + rows, n);
    const int64_t column = index / pieces * kPrefixColumns;
    double* total = sums.data() + index * k;
    std::vector<float> squares(k * kPrefixLanes);
    for (int64_t begin = first; begin < last; begin += kRowsInFloat) {
      std::fill(squares.begin(), squares.end(), 0.0f);
      kernels().prefix_errors.squares(args, begin, std::min(begin + kRowsInFloat, last), column,
                                      std::min(kPrefixColumns, args.d - column), squares.data());
      for (int64_t e = 0; e < k * kPrefixLanes; ++e) total[e / kPrefixLanes] += squares[e];
    }
  });
  std::fill_n(args.errors, k, 0.0);
  for (int64_t e = 0; e < pieces * stripes * k; ++e) args.errors[e % k] += sums[e];
}

// A thread takes a stripe of columns and all rows, in order, so the sums in grad_table need neither
// atomics nor the transpose of the codes.
void prefix_errors_backward(const PrefixErrorsBackward& args, int num_threads) {
  check_latents(args.codes, num_threads);
  const int64_t n = args.codes.n, k = args.codes.k, stripes = stripes_of(args.d);
  const int64_t rows = std::min(n, std::max<int64_t>(1, kDots / std::max<int64_t>(1, stripes * k)));
  const std::unique_ptr<float[]> dots(new float[stripes * rows * k]);
  for (int64_t begin = 0; begin < n; begin += rows) {
    const int64_t end = std::min(begin + rows, n);
    parallel_for(stripes, 1, num_threads, [&](int64_t stripe, int64_t, int) {
      const int64_t column = stripe * kPrefixColumns;
      kernels().prefix_errors.gradients(args, begin, end, column,
                                        std::min(kPrefixColumns, args.d - column),
                                        dots.get() + stripe * rows * k);
    });
    parallel_for((end - begin) * k, 1 << 16, num_threads, [&](int64_t first, int64_t last, int) {
      float* out = args.grad_values + begin * k;
      std::fill(out + first, out + last, 0.0f);
      for (int64_t stripe = 0; stripe < stripes; ++stripe) {
        const float* from = dots.get() + stripe * rows * k;
        for (int64_t e = first; e < last; ++e) out[e] -= from[e];
      }
    });
  }
}

}  // namespace csrkern
