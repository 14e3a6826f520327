// Results of fixed inputs have the same bits on every processor: their checksums are written here.
#include <cstring>
#include <string>
#include <vector>

#include "check.hpp"
#include "csrkern/encode.hpp"
#include "csrkern/fine.hpp"
#include "csrkern/gather.hpp"
#include "csrkern/isa.hpp"
#include "csrkern/prefix_errors.hpp"
#include "csrkern/similarity.hpp"
#include "owned_codes.hpp"
#include "owned_index.hpp"
#include "typed.hpp"

namespace csrkern {
namespace {

constexpr int64_t kRows = 70, kSlots = 12, kDim = 90, kWidth = 107;  // of rows: some of each loop

class Digest {
 public:
  template <class T>
  void add(const T& array) {
    const auto* data = reinterpret_cast<const uint8_t*>(array.data());
    bytes_.insert(bytes_.end(), data, data + array.size() * sizeof(array[0]));
  }
  void add(const Typed& array, int64_t n) {
    std::vector<float> values(n);
    for (int64_t i = 0; i < n; ++i) values[i] = array.get(i);
    add(values);
  }
  uint32_t value() const { return crc32c(bytes_.data(), bytes_.size()); }

 private:
  std::vector<uint8_t> bytes_;
};

Exact<float> numbers(int64_t n, uint64_t seed) {
  Random random(seed);
  Exact<float> made(n);
  for (float& x : made) x = random.symmetric();
  return made;
}

Typed typed_numbers(DType dtype, int64_t n, uint64_t seed) {
  const Exact<float> from = numbers(n, seed);
  Typed made(dtype, n);
  for (int64_t i = 0; i < n; ++i) made.set(i, from[i]);
  return made;
}

// Codes and sums of exact arithmetic, and scores, whose products are rounded before they are added.
uint32_t exact_codes() {
  Digest digest;
  for (DType dtype : kDTypes) {
    const Typed pre = typed_numbers(dtype, kRows * kDim, 1), values(dtype, kRows * kSlots);
    const Exact<int32_t> indices(kRows * kSlots);
    topk_relu(
        {pre.data(), dtype, kRows, kDim, kDim, 1, nullptr, kSlots, values.data(), indices.data()},
        2);
    digest.add(values, kRows * kSlots);
    digest.add(indices);
  }
  const Exact<float> x = numbers(kRows * kWidth, 2), weight = numbers(kDim * kWidth, 3);
  const Exact<float> bias = numbers(kDim, 4), out(kRows * kDim);
  linear_exact({x.data(), weight.data(), kWidth, bias.data(), kRows, kDim, kWidth}, out.data(), 2);
  digest.add(out);
  return digest.value();
}

uint32_t similarities() {
  Digest digest;
  const OwnedCodes a = random_codes(kRows, kSlots, kDim, 5), b = random_codes(400, 9, kDim, 6);
  const OwnedPostings postings(b);
  const Exact<float> out(kRows * b.n), grad = numbers(kRows * b.n, 7), grads(kRows * kSlots);
  similarity(a.view(), postings.view(), b.n, out.data(), 2);
  digest.add(out);
  similarity_backward(a.view(), postings.view(), b.n, {grad.data(), b.n, 1}, grads.data(), 2);
  digest.add(grads);
  return digest.value();
}

uint32_t searches() {
  Digest digest;
  const OwnedCodes codes = random_codes(5000, kSlots, kDim, 8);
  const OwnedCodes queries = random_codes(40, kSlots, kDim, 9);
  for (ValueType type : kValueTypes) {
    for (int32_t block : {0, 64}) {
      const OwnedIndex owned(rows_of(codes), 1024, block, type, true, {}, 2);
      const Index index(owned.view(), false);
      const Exact<float> scores(queries.n * 20);
      const Exact<int64_t> ids(queries.n * 20);
      index.search(rows_of(queries), 20, true, nullptr, 2, scores.data(), ids.data());
      digest.add(owned.postings);
      digest.add(scores);
      digest.add(ids);
    }
  }
  return digest.value();
}

uint32_t products() {
  const int64_t n_blocks = 3, rows = 20, columns = 43;
  const Exact<float> x = numbers(kRows * rows, 10), blocks = numbers(n_blocks * rows * columns, 11);
  const Exact<int64_t> first(n_blocks);
  const Exact<float> out(kRows * n_blocks * columns);
  block_products(
      {kRows, rows, x.data(), n_blocks, rows, columns, blocks.data(), first.data(), out.data()}, 2);
  Digest digest;
  digest.add(out);
  return digest.value();
}

uint32_t units() {
  const int64_t width = 43;
  const Exact<float> x = numbers(kRows * width, 20), center = numbers(width, 21);
  const Exact<float> out(kRows * width);
  unit_rows(x.data(), kRows, width, center.data(), out.data(), 2);
  Digest digest;
  digest.add(out);
  return digest.value();
}

uint32_t gathers(DType dtype) {
  Digest digest;
  const OwnedCodes codes = random_codes(kRows, kSlots, kDim, 12);
  const OwnedPostings postings(codes);
  const Typed table = typed_numbers(dtype, kDim * kWidth, 13);
  const Typed rows = typed_numbers(dtype, kRows * kWidth, 14);
  const Typed sum(dtype, kRows * kWidth), scattered(dtype, kDim * kWidth);
  const Exact<float> dots(kRows * kSlots);
  const Source source{{rows.data(), kWidth}, 0, kSlots, codes.values.data()};
  gather_sum(
      {codes.view(), dtype, {table.data(), kWidth}, kWidth, rows.data(), 1, {kSlots}, {sum.data()}},
      2);
  gather_dot({codes.view(), dtype, {table.data(), kWidth}, kWidth, 1, {source}, dots.data()}, 2);
  scatter_sum({postings.starts.data(),
               postings.rows.data(),
               postings.slots.data(),
               kRows * kSlots,
               kRows,
               kSlots,
               kDim,
               dtype,
               kWidth,
               1,
               {source},
               scattered.data(),
               0},
              2);
  digest.add(sum, kRows * kWidth);
  digest.add(dots);
  digest.add(scattered, kDim * kWidth);
  return digest.value();
}

uint32_t errors(DType dtype) {
  Digest digest;
  const OwnedCodes codes = random_codes(kRows, kSlots, kDim, 15);
  const Typed table = typed_numbers(dtype, kDim * kWidth, 16);
  const Exact<float> residual = numbers(kRows * kWidth, 17), weights = numbers(kSlots, 18);
  const Exact<float> grad_values(kRows * kSlots), grad_table(kDim * kWidth);
  const Exact<float> grad_x(kRows * kWidth);
  const Exact<double> sums(kSlots);
  const Table view{table.data(), kWidth};
  prefix_errors({codes.view(), dtype, view, kWidth, residual.data(), sums.data()}, 2);
  prefix_errors_backward({codes.view(), dtype, view, kWidth, residual.data(), weights.data(),
                          grad_values.data(), grad_table.data(), grad_x.data()},
                         2);
  digest.add(sums);
  for (const auto* array : {&residual, &grad_values, &grad_table, &grad_x}) digest.add(*array);
  return digest.value();
}

void check(const char* name, uint32_t found, uint32_t want) {
  if (found == want) return;
  std::fprintf(stderr, "%s: expected the checksum 0x%08x, got 0x%08x\n", name, want, found);
  std::abort();
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  check("exact codes", exact_codes(), 0x11a1d86d);
  check("similarities", similarities(), 0x10dbd0e6);
  check("searches", searches(), 0xd1796576);
  check("products", products(), 0x033beaf5);
  check("unit rows", units(), 0x75717c0a);
  // The vector kernels fuse each multiplication with its addition, the portable ones do not.
  const bool fused = isa() != Isa::portable;
  check("gathers, float32", gathers(DType::float32), fused ? 0x7f73e704 : 0x5419f9d1);
  check("gathers, float16", gathers(DType::float16), fused ? 0xc80fb57a : 0x15cf4571);
  check("gathers, bfloat16", gathers(DType::bfloat16), fused ? 0xe2d25c26 : 0xfaa062e1);
  check("errors, float32", errors(DType::float32), fused ? 0x4717bbd6 : 0xdbe47d10);
  check("errors, float16", errors(DType::float16), fused ? 0x818c77e4 : 0x7d33593a);
  check("errors, bfloat16", errors(DType::bfloat16), fused ? 0xe7665341 : 0xb098d793);
}
