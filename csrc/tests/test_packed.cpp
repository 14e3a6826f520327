#include <algorithm>
#include <numeric>

#include "check.hpp"
#include "csrkern/packed.hpp"
#include "owned_codes.hpp"

namespace csrkern {
namespace {

// Packs, unpacks and packs again: the same bytes, and the same latents in the same rows.
void test_round_trip() {
  for (const int64_t dim : {1, 2, 33, 4096, 100000}) {
    for (const int64_t k : {int64_t{1}, int64_t{5}, int64_t{40}}) {
      if (k > dim) continue;
      const OwnedCodes codes = with_wild_padding(random_codes(700, k, dim, 3));
      const float largest = *std::max_element(codes.values.data(), codes.values.data() + 700 * k);
      for (int bits = 1; bits <= kMaxValueBits; ++bits) {
        const PackedForm form = packed_form(k, dim, bits);
        Exact<uint8_t> rows(700 * form.row_bytes), again(700 * form.row_bytes);
        Exact<float> values(700 * k);
        Exact<int32_t> indices(700 * k);
        pack(codes.view(), form, largest, rows.data(), 2);
        CHECK(unpack(rows.data(), 700, form, largest, values.data(), indices.data(), 2) == 700);
        pack({values.data(), indices.data(), 700, k, dim}, form, largest, again.data(), 1);
        for (int64_t i = 0; i < 700 * k; ++i) CHECK(values[i] >= 0 && values[i] <= 1.1f * largest);
        Exact<float> second(700 * k);
        Exact<int32_t> latents(700 * k);
        CHECK(unpack(again.data(), 700, form, largest, second.data(), latents.data(), 1) == 700);
        for (int64_t i = 0; i < 700; ++i) {
          const auto sum = [&](const Exact<int32_t>& of) {
            return std::accumulate(of.data() + i * k, of.data() + (i + 1) * k, int64_t{0});
          };
          CHECK(sum(indices) == sum(latents));
        }
      }
    }
  }
}

// Bytes of any kind are refused, or are codes in order.
void test_forged() {
  Random random(4);
  for (int trial = 0; trial < 3000; ++trial) {
    const int64_t dim = 1 + trial % 97, k = 1 + trial % std::min<int64_t>(dim, 9);
    const PackedForm form = packed_form(k, dim, 1 + trial % 8);
    Exact<uint8_t> row(form.row_bytes);
    for (int64_t i = 0; i < form.row_bytes; ++i)
      row[i] = static_cast<uint8_t>(128 + 127 * random.symmetric());
    Exact<float> values(k);
    Exact<int32_t> indices(k);
    if (unpack(row.data(), 1, form, 1.0f, values.data(), indices.data(), 1) == 0) continue;
    for (int64_t s = 0; s < k; ++s) {
      CHECK(indices[s] >= 0 && indices[s] < dim);
      CHECK(s == 0 || values[s] < values[s - 1] || values[s] == 0 || indices[s] > indices[s - 1]);
    }
  }
}

// What is no code is refused, and nothing is written out of bounds.
void test_no_code() {
  const PackedForm form = packed_form(2, 300, 3);
  Exact<uint8_t> rows(3 * form.row_bytes);
  const auto packed = [&](float value, int32_t latent) {
    const float values[] = {1, 0.5f, 1, value, 1, 0};
    const int32_t indices[] = {5, 7, 5, latent, 5, -1};  // the last is of an empty slot
    return pack({values, indices, 3, 2, 300}, form, 1.0f, rows.data(), 1);
  };
  CHECK(packed(0.5f, 299) == 3);
  for (const int32_t latent : {300, -1, 0x7fffffff, -0x7fffffff, 5})
    CHECK(packed(0.5f, latent) == 1);
  CHECK(packed(-0.5f, 6) == 1);
}

}  // namespace
}  // namespace csrkern

int main() {
  csrkern::test_round_trip();
  csrkern::test_forged();
  csrkern::test_no_code();
}
