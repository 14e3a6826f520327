#include "check.hpp"
#include "csrkern/gather.hpp"
#include "csrkern/isa.hpp"
#include "owned_codes.hpp"
#include "typed.hpp"

namespace csrkern {
namespace {

Typed random_table(DType dtype, int64_t rows, int64_t stride, int64_t d, Random& random) {
  Typed table(dtype, rows == 0 ? 0 : (rows - 1) * stride + d);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < d; ++c) table.set(r * stride + c, random.symmetric());
  }
  return table;
}

// sum + scale * x; the portable kernels, made for any processor, round the product too.
float add_scaled(float sum, float scale, float x) {
  return isa() == Isa::portable ? sum + scale * x : std::fma(scale, x, sum);
}

// A float32 sum is the specification's to the last bit; 16-bit results are it, rounded.
bool rounds_to(const Typed& out, int64_t i, float sum) {
  if (out.dtype() == DType::float32) return out.get(i) == sum;
  return close(out.get(i), sum, out.rounding(), 0x1p-25);
}

void check_sum(DType dtype, const OwnedCodes& codes, int64_t d, int64_t extra, bool with_bias,
               int num_threads) {
  Random random(d);
  const int64_t n = codes.n, k = codes.k, stride = d + extra;
  const Typed table = random_table(dtype, codes.dim, stride, d, random);
  const Typed bias = random_table(dtype, 1, d, d, random);
  GatherSum args{
      codes.view(), dtype, {table.data(), stride}, d, with_bias ? bias.data() : nullptr, 0, {}, {}};
  std::vector<Typed> outs;
  for (int64_t end = k; end > 0 && outs.size() < kMaxPrefixes; end /= 2)
    outs.emplace_back(dtype, n * d);
  args.num_prefixes = static_cast<int>(outs.size());
  for (int q = 0; q < args.num_prefixes; ++q) {
    args.ends[q] = k >> (args.num_prefixes - 1 - q);
    args.outs[q] = outs[q].data();
  }
  gather_sum(args, num_threads);
  for (int q = 0; q < args.num_prefixes; ++q) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < d; ++c) {
        float sum = 0;
        for (int64_t s = i * k; s < i * k + args.ends[q]; ++s) {
          if (codes.values[s] == 0) continue;
          sum = add_scaled(sum, codes.values[s], table.get(codes.indices[s] * stride + c));
        }
        CHECK(rounds_to(outs[q], i * d + c, sum + (with_bias ? bias.get(c) : 0.0f)));
      }
    }
  }
}

// Two sources of rows, one for all slots and one for the first half.
struct Sources {
  Sources(DType dtype, const OwnedCodes& codes, int64_t d, int64_t extra, Random& random)
      : stride(d + extra),
        scales{Exact<float>(codes.n * codes.k), Exact<float>(codes.n * codes.k)} {
    rows.reserve(2);
    for (int q = 0; q < 2; ++q) {
      rows.push_back(random_table(dtype, codes.n, stride, d, random));
      for (float& scale : scales[q]) scale = random.symmetric();
      sources[q] = {{rows[q].data(), stride},
                    q * (codes.k / 4),
                    q == 0 ? codes.k : codes.k / 2,
                    scales[q].data()};
    }
  }

  int64_t stride;
  std::vector<Typed> rows;
  Exact<float> scales[2];
  Source sources[2];
};

void check_dot(DType dtype, const OwnedCodes& codes, int64_t d, int64_t extra, int num_threads) {
  Random random(d + 1);
  const int64_t n = codes.n, k = codes.k, stride = d + extra;
  const Typed table = random_table(dtype, codes.dim, stride, d, random);
  const Sources from(dtype, codes, d, extra, random);
  const Exact<float> out(n * k, std::nanf(""));
  GatherDot args{codes.view(), dtype, {table.data(), stride}, d, 2, {}, out.data()};
  std::copy_n(from.sources, 2, args.sources);
  gather_dot(args, num_threads);
  for (int64_t e = 0; e < n * k; ++e) {
    double sum = 0, size = 0;
    for (int q = 0; q < 2 && codes.values[e] != 0; ++q) {
      if (e % k < from.sources[q].begin || e % k >= from.sources[q].end) continue;
      for (int64_t c = 0; c < d; ++c) {
        const double product = static_cast<double>(from.rows[q].get(e / k * stride + c)) *
                               table.get(codes.indices[e] * stride + c);
        sum += product;
        size += std::abs(product);
      }
    }
    CHECK(std::abs(out[e] - sum) <= 1e-6 * size);
  }
}

void check_scatter(DType dtype, const OwnedCodes& codes, int64_t d, int64_t extra,
                   int num_threads) {
  Random random(d + 2);
  const int64_t k = codes.k;
  const OwnedPostings postings(codes);
  const Sources from(dtype, codes, d, extra, random);
  const Typed out(dtype, codes.dim * d);
  ScatterSum args{postings.starts.data(),
                  postings.rows.data(),
                  postings.slots.data(),
                  codes.n * k,
                  codes.n,
                  k,
                  codes.dim,
                  dtype,
                  d,
                  2,
                  {},
                  out.data(),
                  0};
  std::copy_n(from.sources, 2, args.sources);
  scatter_sum(args, num_threads);
  for (int64_t latent = 0; latent < codes.dim; ++latent) {
    for (int64_t c = 0; c < d; ++c) {
      float sum = 0;
      for (int64_t e = 0; e < codes.n * k; ++e) {
        if (codes.values[e] == 0 || codes.indices[e] != latent) continue;
        for (int q = 0; q < 2; ++q) {
          if (e % k < from.sources[q].begin || e % k >= from.sources[q].end) continue;
          sum = add_scaled(sum, from.scales[q][e], from.rows[q].get(e / k * from.stride + c));
        }
      }
      CHECK(rounds_to(out, latent * d + c, sum));
    }
  }
}

void check_out_of_range(DType dtype) {
  Random random(1);
  const OwnedCodes good = random_codes(9, 6, 30, 1);
  const Typed table = random_table(dtype, 30, 40, 40, random);
  const Typed rows = random_table(dtype, 9, 40, 40, random), out(dtype, 30 * 40);
  const Exact<float> dots(9 * 6);
  check_refused(good, [&](const OwnedCodes& codes) {
    gather_sum({codes.view(), dtype, {table.data(), 40}, 40, nullptr, 1, {6}, {out.data()}}, 2);
  });
  const Source source{{rows.data(), 40}, 0, 6, good.values.data()};
  check_refused(good, [&](const OwnedCodes& codes) {
    gather_dot({codes.view(), dtype, {table.data(), 40}, 40, 1, {source}, dots.data()}, 2);
  });
  OwnedPostings postings(good);
  postings.rows[3] = 9;
  CHECK_THROWS(scatter_sum({postings.starts.data(),
                            postings.rows.data(),
                            postings.slots.data(),
                            9 * 6,
                            9,
                            6,
                            30,
                            dtype,
                            40,
                            1,
                            {source},
                            out.data(),
                            0},
                           2),
               std::out_of_range);
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  for (DType dtype : kDTypes) {
    check_out_of_range(dtype);
    for (int64_t d :
         {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300, 400, 800}) {
      for (int64_t k : {1, 6, 16, 24}) {
        const OwnedCodes codes = with_wild_padding(random_codes(9, k, 30, d * 100 + k));
        const int64_t extra = d % 3;
        const int threads = 1 + static_cast<int>(d % 3);
        check_sum(dtype, codes, d, extra, d % 2 == 0, threads);
        check_dot(dtype, codes, d, extra, threads);
        check_scatter(dtype, codes, d, extra, threads);
      }
    }
    const OwnedCodes many = with_wild_padding(random_codes(400, 5, 50, 1));
    check_sum(dtype, many, 40, 0, true, 3);
    check_dot(dtype, many, 40, 0, 3);
    check_scatter(dtype, many, 40, 0, 3);
    const OwnedCodes dense =
        random_codes(1000, 6, 8, 2);  // lists long enough for several tiles of rows
    check_scatter(dtype, dense, 300, 1, 2);
    const OwnedCodes none = random_codes(0, 4, 3, 1);
    check_sum(dtype, none, 8, 0, true, 2);
    check_dot(dtype, none, 8, 0, 2);
    check_scatter(dtype, none, 8, 0, 2);
  }
}
