#include "check.hpp"
#include "csrkern/info_nce.hpp"
#include "owned_codes.hpp"

namespace csrkern {
namespace {

enum class Variant { pairs, one_set, labels, labels_in_one_set };

// The losses of the rows of `a` against those of `b`, densely and in float64.
struct Dense {
  const OwnedCodes& a;
  const OwnedCodes& b;
  Variant variant;
  double scale;
  const int32_t* classes_a;
  const int32_t* classes_b;

  bool one_set() const {
    return variant == Variant::one_set || variant == Variant::labels_in_one_set;
  }

  // `moved` is added to the value of entry e of the set that is changed.
  double total(const Exact<float>& grads, bool change_b, int64_t e, double moved) const {
    const auto rows = [&](const OwnedCodes& codes, bool change) {
      std::vector<std::vector<double>> dense;
      for (int64_t i = 0; i < codes.n; ++i) dense.push_back(codes.row(i));
      if (change && e >= 0) dense[e / codes.k][codes.indices[e]] += moved;
      return dense;
    };
    const auto left = rows(a, one_set() || !change_b), right = rows(b, one_set() || change_b);
    double sum = 0;
    for (int64_t i = 0; i < a.n; ++i) sum += grads[i] * loss(left, right, i);
    return sum;
  }

  double loss(const std::vector<std::vector<double>>& left,
              const std::vector<std::vector<double>>& right, int64_t i) const {
    std::vector<double> scores(right.size());
    double peak = 0;
    for (size_t j = 0; j < right.size(); ++j) {
      for (int64_t l = 0; l < a.dim; ++l) scores[j] += left[i][l] * right[j][l];
      peak = std::max(peak, scores[j]);
    }
    double sum = 0, positive = 0;
    int64_t positives = 0;
    for (int64_t j = 0; j < b.n; ++j) {
      const bool labeled = classes_a != nullptr;
      const bool self = one_set() && i == j;
      if (labeled && self) continue;
      const double count = variant == Variant::one_set && !self ? 2 : 1;
      sum += count * std::exp((scores[j] - peak) * scale);
      if (labeled ? classes_a[i] == classes_b[j] : i == j) {
        positive += scores[j];
        ++positives;
      }
    }
    if (positives == 0) return 0;
    return std::log(sum) + (peak - positive / positives) * scale;
  }
};

Exact<int32_t> random_classes(int64_t n, uint64_t seed) {
  Random random(seed);
  Exact<int32_t> classes(n);
  for (int32_t& c : classes) c = static_cast<int32_t>(random.below(4));
  if (n > 2) classes[1] = 99;  // alone in its class
  return classes;
}

Exact<int32_t> count_positives(const Exact<int32_t>& of, const Exact<int32_t>& among,
                               bool one_set) {
  Exact<int32_t> counts(of.size());
  for (size_t i = 0; i < of.size(); ++i) {
    for (size_t j = 0; j < among.size(); ++j) {
      counts[i] += of[i] == among[j] && !(one_set && i == j);
    }
  }
  return counts;
}

void check(Variant variant, int64_t n, int64_t m, double temperature, int num_threads) {
  const int64_t k = 3, dim = 12;
  const bool one_set = variant == Variant::one_set || variant == Variant::labels_in_one_set;
  const bool labeled = variant == Variant::labels || variant == Variant::labels_in_one_set;
  const OwnedCodes a = with_wild_padding(random_codes(n, k, dim, 1));
  const OwnedCodes b = one_set ? a : with_wild_padding(random_codes(m, k, dim, 2));
  const OwnedPostings postings_a(a), postings_b(b);
  const Exact<int32_t> classes_a = random_classes(n, 3);
  const Exact<int32_t> classes_b = one_set ? classes_a : random_classes(m, 4);
  const Exact<int32_t> positives = count_positives(classes_a, classes_b, one_set);
  const float scale = static_cast<float>(1 / temperature);
  const auto given = [&](const Exact<int32_t>& array) { return labeled ? array.data() : nullptr; };
  const InfoNce args{a.view(),         postings_b.view(), m, one_set, scale, given(classes_a),
                     given(classes_b), given(positives)};

  const Exact<float> loss(n, std::nanf("")), peak(n), log_total(n);
  info_nce(args, loss.data(), peak.data(), log_total.data(), num_threads);
  const Dense dense{a, b, variant, scale, args.classes_a, args.classes_b};
  for (int64_t i = 0; i < n; ++i) {
    Exact<float> only(n);
    only[i] = 1;
    if (i < 3 || i + 2 > n) CHECK(close(loss[i], dense.total(only, false, -1, 0), 1e-5, 1e-5));
  }

  Random random(5);
  const Exact<float> grads(n);
  for (float& g : grads) g = random.symmetric();
  const InfoNceRows rows{grads.data(), peak.data(), log_total.data()};
  // An entry's gradient is that of the total where it is moved a little.
  const auto check_gradient = [&](const OwnedCodes& codes, bool of_b, const Exact<float>& got) {
    for (int64_t e = 0; e < codes.n * k; ++e) {
      if (codes.values[e] == 0) {
        CHECK(got[e] == 0);
        continue;
      }
      if (codes.n > 100 && e % 4001 != 0) continue;
      const double step = 1e-5;
      const double slope =
          (dense.total(grads, of_b, e, step) - dense.total(grads, of_b, e, -step)) / (2 * step);
      CHECK(close(got[e], slope, 1e-4, 1e-5 * scale));
    }
  };
  const Exact<float> grad_a(n * k, std::nanf(""));
  info_nce_backward(args, rows, false, grad_a.data(), num_threads);
  check_gradient(a, false, grad_a);
  if (one_set) return;
  const InfoNce turned{b.view(),         postings_a.view(), n, false, scale, given(classes_b),
                       given(classes_a), given(positives)};
  const Exact<float> grad_b(m * k, std::nanf(""));
  info_nce_backward(turned, rows, true, grad_b.data(), num_threads);
  check_gradient(b, true, grad_b);
}

void check_out_of_range() {
  const OwnedCodes a = random_codes(9, 4, 20, 1);
  const OwnedPostings postings(random_codes(9, 4, 20, 2));
  const Exact<float> loss(9), peak(9), log_total(9), grad_values(9 * 4);
  const auto args = [&](const OwnedCodes& codes) {
    return InfoNce{codes.view(), postings.view(), 9, false, 1, nullptr, nullptr, nullptr};
  };
  check_refused(a, [&](const OwnedCodes& codes) {
    info_nce(args(codes), loss.data(), peak.data(), log_total.data(), 2);
  });
  check_refused(a, [&](const OwnedCodes& codes) {
    const InfoNceRows rows{loss.data(), peak.data(), log_total.data()};
    info_nce_backward(args(codes), rows, false, grad_values.data(), 2);
  });
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  check_out_of_range();
  for (Variant variant :
       {Variant::pairs, Variant::one_set, Variant::labels, Variant::labels_in_one_set}) {
    const bool square = variant != Variant::labels;
    for (int64_t n : {1, 2, 7, 16, 33}) {
      check(variant, n, square ? n : n + 5, 0.2, 1 + static_cast<int>(n % 3));
    }
    check(variant, 9, 9, 0.01, 2);
    check(variant, 9, 9, 50, 2);
  }
  check(Variant::labels, 3, 16'385, 0.2, 2);  // two windows
}
