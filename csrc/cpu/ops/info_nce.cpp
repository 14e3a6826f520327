#include "csrkern/info_nce.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "csrkern/parallel.hpp"
#include "isa/kernels.hpp"
#include "ops/similarity_rows.hpp"

namespace csrkern {
namespace {

// Rows that a thread takes at once: it visits a window for all of them before the next window.
constexpr int64_t kRowsAtOnce = 32;
constexpr int64_t kSlack = 16;  // packing writes whole vectors

// A buffer of floats for each thread, zeroed at its first use.
class Scratch {
 public:
  Scratch(int num_threads, int64_t size) : buffers_(std::max(num_threads, 1)), size_(size) {}

  float* of(int thread) {
    auto& mine = buffers_[thread];
    if (!mine) mine.reset(new float[size_]());
    return mine.get();
  }

 private:
  std::vector<std::unique_ptr<float[]>> buffers_;
  int64_t size_;
};

float square_norm(const Codes& a, int64_t i) {
  float sum = 0;  // in the order of add_scores, for the same bits
  for (int64_t slot = 0; slot < a.k; ++slot) {
    const float value = a.values[i * a.k + slot];
    sum += value * value;
  }
  return sum;
}

}  // namespace

void info_nce(const InfoNce& args, float* loss, float* peak, float* log_total, int num_threads) {
  const InfoNceKernels& kernels = csrkern::kernels().info_nce;
  const Codes& a = args.a;
  check_latents(a, num_threads);
  const Windows windows(args.b, a.dim, args.m);
  const bool labeled = args.classes_a != nullptr;
  Scratch scratch(num_threads, 2 * Windows::kRows + kSlack);
  parallel_for(a.n, kRowsAtOnce, num_threads, [&](int64_t begin, int64_t end, int thread) {
    float* scores = scratch.of(thread);  // all 0 between rows
    float* packed = scores + Windows::kRows;
    ScoreSums sums[kRowsAtOnce];
    float partner[kRowsAtOnce];  // the score of the row with itself or its pair
    for (int64_t i = begin; i < end; ++i) {
      partner[i - begin] = args.one_set && !labeled ? square_norm(a, i) : 0.0f;
      sums[i - begin] = {partner[i - begin], 0, 0, 0};
    }
    for (int64_t w = 0; w < windows.count(); ++w) {
      const int64_t first = windows.first(w), size = windows.size(w);
      for (int64_t i = begin; i < end; ++i) {
        windows.add_scores(a, i, w, scores);
        if (i >= first && i < first + size) {
          if (args.one_set) {
            scores[i - first] = 0;  // the row itself comes last, with its own factor
            --sums[i - begin].zeros;
          } else {
            partner[i - begin] = scores[i - first];
          }
        }
        kernels.sum_scores(scores, size, args.scale, labeled ? args.classes_b + first : nullptr,
                           labeled ? args.classes_a[i] : 0, packed, &sums[i - begin]);
      }
    }
    for (int64_t i = begin; i < end; ++i) {
      const ScoreSums& s = sums[i - begin];
      const double scale = args.scale, top = s.peak, mate = partner[i - begin];
      const double rest = s.total + s.zeros * std::exp(-top * scale);
      // log(2 rest + exp(x)), in a form that keeps a tiny rest at x = 0.
      const double log_sum = args.one_set && !labeled
                                 ? std::log1p(2 * rest + std::expm1((mate - top) * scale))
                                 : std::log(rest);
      const double positive = labeled ? s.positive / std::max(args.n_positives[i], 1) : mate;
      const bool counts = !labeled || args.n_positives[i] > 0;
      peak[i] = s.peak;
      log_total[i] = static_cast<float>(log_sum);
      loss[i] = counts ? static_cast<float>(log_sum + (top - positive) * scale) : 0.0f;
    }
  });
}

void info_nce_backward(const InfoNce& args, const InfoNceRows& rows, bool of_columns,
                       float* grad_values, int num_threads) {
  const InfoNceKernels& kernels = csrkern::kernels().info_nce;
  const Codes& a = args.a;
  check_latents(a, num_threads);
  const Windows windows(args.b, a.dim, args.m);
  const bool labeled = args.classes_a != nullptr;
  const bool by_row = args.one_set || !of_columns, by_column = args.one_set || of_columns;

  const int64_t n_losses = of_columns ? args.m : a.n;
  std::vector<float> weight(n_losses), pull(labeled ? n_losses : 0);
  for (int64_t i = 0; i < n_losses; ++i) {
    weight[i] = rows.grad[i] * args.scale;
    if (labeled) {
      // A row without a positive has no loss.
      if (args.n_positives[i] == 0) weight[i] = 0;
      pull[i] = weight[i] / std::max(args.n_positives[i], 1);
    } else if (args.one_set) {
      weight[i] *= 2;
    }
  }
  const auto term = [&](int64_t i) {
    return GradientTerm{weight.data() + i, rows.peak + i, rows.log_total + i,
                        labeled ? pull.data() + i : nullptr};
  };

  Scratch scratch(num_threads, Windows::kRows);
  parallel_for(a.n, kRowsAtOnce, num_threads, [&](int64_t begin, int64_t end, int thread) {
    float* scores = scratch.of(thread);  // all 0 between rows
    std::fill(grad_values + begin * a.k, grad_values + end * a.k, 0.0f);
    for (int64_t w = 0; w < windows.count(); ++w) {
      const int64_t first = windows.first(w), size = windows.size(w);
      const GradientTerm columns = term(by_column ? first : 0);
      for (int64_t i = begin; i < end; ++i) {
        windows.add_scores(a, i, w, scores);
        const bool meets_partner = i >= first && i < first + size;
        const double mate = meets_partner ? scores[i - first] : 0;
        const GradientTerm row = term(by_row ? i : 0);
        kernels.to_gradient(scores, size, args.scale, labeled ? args.classes_b + first : nullptr,
                            labeled ? args.classes_a[i] : 0, by_row ? &row : nullptr,
                            by_column ? &columns : nullptr);
        if (meets_partner && labeled && args.one_set) {
          scores[i - first] = 0;
        } else if (meets_partner && !labeled) {
          // expm1: if the partner has nearly all the probability, p - 1 would lose all digits. In
          // one set `weight` is doubled, since this score is both s_ij and s_ji.
          scores[i - first] = static_cast<float>(
              weight[i] * std::expm1((mate - rows.peak[i]) * args.scale - rows.log_total[i]));
        }
        windows.add_gradient(a, i, w, scores, grad_values + i * a.k);
        std::fill_n(scores, size, 0.0f);
      }
    }
  });
}

}  // namespace csrkern
