// Products and fine codes, in memory that ends where it must.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "csrkern/fine.hpp"
#include "exact_memory.hpp"

namespace csrkern {
namespace {

void fill(const Exact<float>& memory, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (float& x : memory) x = normal(random);
}

void check_products(int64_t n, int64_t rows, int64_t columns, int threads) {
  const int64_t n_blocks = 3, width = rows + 5;
  const Exact<float> x(n * width), blocks(n_blocks * rows * columns);
  fill(x, 1);
  fill(blocks, 2);
  const Exact<int64_t> first(n_blocks);
  for (int64_t b = 0; b < n_blocks; ++b) first.data()[b] = (b * 2) % 6;
  const Exact<float> out(n * n_blocks * columns, -1.0f);
  block_products(
      {n, width, x.data(), n_blocks, rows, columns, blocks.data(), first.data(), out.data()},
      threads);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t b = 0; b < n_blocks; ++b) {
      for (int64_t j = 0; j < columns; ++j) {
        float sum = 0;
        for (int64_t r = 0; r < rows; ++r) {
          sum = std::fma(x.data()[i * width + first.data()[b] + r],
                         blocks.data()[(b * rows + r) * columns + j], sum);
        }
        CHECK(out.data()[(i * n_blocks + b) * columns + j] == sum);
      }
    }
  }
}

// Sums that are wrong if they are rounded twice: a product of nearly half of the last place.
void check_rounded_once() {
  const float half = 0x1p-12f * (1 + 0x1p-23f), other = 0x1p-12f * (1 - 0x1p-23f);
  for (const float start : {1 + 0x1p-23f, -1 - 0x1p-23f, 1.0f, 1 + 0x1p-22f}) {
    for (const float sign : {1.0f, -1.0f}) {
      for (const int64_t columns : {1, 16, 100}) {
        const Exact<float> x{1.0f, sign * half}, blocks(2 * columns), out(columns);
        std::fill_n(blocks.data(), columns, start);
        std::fill_n(blocks.data() + columns, columns, other);
        const Exact<int64_t> first{0};
        block_products({1, 2, x.data(), 1, 2, columns, blocks.data(), first.data(), out.data()}, 1);
        for (float sum : out) CHECK(sum == std::fma(sign * half, other, start));
      }
    }
  }
}

void check_unit_rows(int64_t width) {
  const int64_t n = 70;  // more than one thread takes at once
  const Exact<float> x(n * width), center(width), whole(n * width), moved(n * width);
  fill(x, 5);
  fill(center, 6);
  std::fill_n(x.data() + width, width, 0.0f);
  for (int64_t j = 0; j < width; ++j) x.data()[2 * width + j] *= 1e15f;
  std::fill_n(x.data() + 3 * width, width, std::numeric_limits<float>::denorm_min());
  unit_rows(x.data(), n, width, nullptr, whole.data(), 3);
  unit_rows(x.data(), n, width, center.data(), moved.data(), 1);
  for (int64_t i = 0; i < n; ++i) {
    double square = 0;
    for (int64_t j = 0; j < width; ++j) square += std::pow(double{x.data()[i * width + j]}, 2);
    for (int64_t j = i * width; j < (i + 1) * width; ++j) {
      const double wanted = square == 0 ? 0 : x.data()[j] / std::sqrt(square);
      CHECK(std::fabs(whole.data()[j] - wanted) <= 6.1e-8 * std::fabs(wanted));
      CHECK(moved.data()[j] == whole.data()[j] - center.data()[j - i * width]);
    }
  }
}

void check_within() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int64_t n : {0, 1, 7, 64, 100}) {
    const Exact<float> x(n);
    fill(x, 7);
    CHECK(within(x.data(), n, 10));
    for (int64_t i = 0; i < n; ++i) {
      const float kept = x.data()[i];
      for (float wrong : {nan, 10.5f, -10.5f, -std::numeric_limits<float>::infinity()}) {
        x.data()[i] = wrong;
        CHECK(!within(x.data(), n, 10));
      }
      x.data()[i] = kept;
    }
  }
}

double error_of(const std::vector<float>& x, const Exact<float>& words, const uint8_t* code,
                int64_t books, int64_t parts) {
  const int64_t width = static_cast<int64_t>(x.size()) / parts;
  double error = 0;
  for (int64_t j = 0; j < static_cast<int64_t>(x.size()); ++j) {
    double left = x[j];
    const int64_t part = j / width, each = books / parts;
    for (int64_t b = part * each; b < (part + 1) * each; ++b) {
      left -= words.data()[(b * kWords + code[b]) * width + j % width];
    }
    error += left * left;
  }
  return error;
}

// A wider beam is no worse on the whole, and one of all words finds the best pair of them.
void check_encoding(int64_t parts) {
  const int64_t n = 6, each = 2, books = parts * each, width = 3;
  const Exact<float> words(books * kWords * width);
  fill(words, 3);
  std::vector<std::vector<float>> x(n, std::vector<float>(parts * width));
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (auto& row : x) {
    for (float& entry : row) entry = 2 * normal(random);
  }
  const Exact<float> products(n * books * kWords), squares(books * kWords),
      crossed(books * kWords * each * kWords);
  const auto word = [&](int64_t b, int64_t w) { return words.data() + (b * kWords + w) * width; };
  const auto dot = [&](const float* a, const float* b) {
    float sum = 0;
    for (int64_t j = 0; j < width; ++j) sum += a[j] * b[j];
    return sum;
  };
  for (int64_t b = 0; b < books; ++b) {
    for (int64_t w = 0; w < kWords; ++w) {
      squares.data()[b * kWords + w] = dot(word(b, w), word(b, w));
      for (int64_t i = 0; i < n; ++i) {
        products.data()[(i * books + b) * kWords + w] =
            dot(x[i].data() + b / each * width, word(b, w));
      }
      for (int64_t l = 0; l < each; ++l) {
        for (int64_t v = 0; v < kWords; ++v) {
          crossed.data()[((b * kWords + w) * each + l) * kWords + v] =
              dot(word(b, w), word(b / each * each + l, v));
        }
      }
    }
  }
  double whole[2] = {0, 0};
  for (int64_t beam : {int64_t{1}, kWords}) {
    const Exact<uint8_t> codes(n * books), again(n * books);
    const auto encode = [&](const Exact<uint8_t>& out, int threads) {
      fine_encode(
          {n, books, parts, beam, products.data(), squares.data(), crossed.data(), out.data()},
          threads);
    };
    encode(codes, 1);
    encode(again, 3);
    CHECK(std::equal(codes.begin(), codes.end(), again.begin()));
    for (int64_t i = 0; i < n; ++i) {
      whole[beam > 1] += error_of(x[i], words, codes.data() + i * books, books, parts);
    }
    if (beam == 1 || parts > 1) continue;
    for (int64_t i = 0; i < n; ++i) {
      double best = std::numeric_limits<double>::max();
      for (int a = 0; a < kWords; ++a) {
        for (int b = 0; b < kWords; ++b) {
          const uint8_t code[2] = {static_cast<uint8_t>(a), static_cast<uint8_t>(b)};
          best = std::min(best, error_of(x[i], words, code, books, parts));
        }
      }
      CHECK(error_of(x[i], words, codes.data() + i * books, books, parts) < best + 1e-3);
    }
  }
  CHECK(whole[1] < whole[0]);
}

}  // namespace
}  // namespace csrkern

int main() {
  for (int64_t n : {0, 1, 3, 4, 9}) {
    for (int64_t columns : {1, 7, 64, 131, 256}) {
      csrkern::check_products(n, 11, columns, n % 2 == 0 ? 1 : 3);
    }
  }
  csrkern::check_rounded_once();
  for (int64_t width : {1, 3, 8, 9, 16, 131}) csrkern::check_unit_rows(width);
  csrkern::check_within();
  csrkern::check_encoding(1);
  csrkern::check_encoding(2);
}
