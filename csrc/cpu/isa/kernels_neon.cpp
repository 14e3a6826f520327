// All kernels for NEON, as every 64-bit ARM has it, with its instructions for crc32c. Only kNeon
// has external linkage.
#include <arm_neon.h>

#include "generic/batch.hpp"
#include "generic/eight_lanes.hpp"
#include "generic/encode.hpp"
#include "generic/fine.hpp"
#include "generic/gather.hpp"
#include "generic/info_nce.hpp"
#include "generic/prefix_errors.hpp"
#include "generic/products.hpp"
#include "generic/topk_relu.hpp"
#include "isa/crc32c.hpp"
#include "isa/kernels.hpp"
#include "isa/simd_neon.hpp"

namespace csrkern {
namespace {

void add_bounds(const uint8_t* const* rows, const uint16_t* weights, int n_rows, int64_t n,
                uint16_t* bounds) {
  for (int64_t b = 0; b < n; b += 8) {
    uint16x8_t sum = vdupq_n_u16(1);
    for (int t = 0; t < n_rows; ++t) {
      const uint16x8_t codes = vmovl_u8(vld1_u8(rows[t] + b));
      const uint16x4_t low = vshrn_n_u32(vmull_n_u16(vget_low_u16(codes), weights[t]), 8);
      const uint32x4_t high = vmull_high_n_u16(codes, weights[t]);
      sum = vaddq_u16(sum, vshrn_high_n_u32(low, high, 8));
    }
    vst1q_u16(bounds + b, sum);
  }
}

int64_t find_bounds(const uint16_t* bounds, int64_t n, uint16_t least, int32_t* found) {
  int64_t count = 0;
  for (int64_t b = 0; b < n; b += 16) {
    const int64_t last = n - b < 16 ? n - b : 16;
    if (last == 16) {
      const uint16x8_t most = vmaxq_u16(vld1q_u16(bounds + b), vld1q_u16(bounds + b + 8));
      if (vmaxvq_u16(most) < least) continue;
    }
    for (int64_t j = b; j < b + last; ++j) {
      if (bounds[j] >= least) found[count++] = static_cast<int32_t>(j);
    }
  }
  return count;
}

// Returns the lanes of `kVectors` masks as bits; most often there are none.
template <int kVectors>
uint64_t set_of(const uint16x8_t* masks) {
  uint16x8_t any = masks[0];
  for (int i = 1; i < kVectors; ++i) any = vorrq_u16(any, masks[i]);
  if (vmaxvq_u16(any) == 0) return 0;
  const uint8_t lane_bits[] = {1, 2, 4, 8, 16, 32, 64, 128};
  uint64_t bits = 0;
  for (int i = 0; i < kVectors; ++i) {
    const uint8x8_t lanes = vand_u8(vmovn_u16(masks[i]), vld1_u8(lane_bits));
    bits |= uint64_t{vaddv_u8(lanes)} << 8 * i;
  }
  return bits;
}

// Sums stop at 65,535 and are cut to kMostSum where they are read.
struct BatchSums {
  static constexpr int kVectors = kBatch / 8;
  using Bars = const int16_t*;

  uint16x8_t sum[kVectors] = {};

  void add(const int8_t* a, const int8_t* b, uint16_t pair) {
    const uint8x8_t first = vdup_n_u8(static_cast<uint8_t>(pair));
    const uint8x8_t second = vdup_n_u8(static_cast<uint8_t>(pair >> 8));
    for (int i = 0; i < kVectors; ++i) {
      const uint8x8_t x = vreinterpret_u8_s8(vld1_s8(a + 8 * i));
      const uint8x8_t y = vreinterpret_u8_s8(vld1_s8(b + 8 * i));
      sum[i] = vqaddq_u16(sum[i], vmlal_u8(vmull_u8(x, first), y, second));
    }
  }
  int16x8_t cut(int i) const {
    return vreinterpretq_s16_u16(vminq_u16(sum[i], vdupq_n_u16(kMostSum)));
  }
  uint64_t reached(Bars bars) const {
    uint16x8_t over[kVectors];
    for (int i = 0; i < kVectors; ++i) over[i] = vcgeq_s16(cut(i), vld1q_s16(bars + 8 * i));
    return set_of<kVectors>(over);
  }
  void store(int16_t* sums) const {
    for (int i = 0; i < kVectors; ++i) vst1q_s16(sums + 8 * i, cut(i));
  }
};

struct FineSums {
  static constexpr int kVectors = kFineBatch / 16;

  uint8x16_t sum[kVectors] = {};

  void add(const uint8_t* line) {
    for (int i = 0; i < kVectors; ++i) sum[i] = vqaddq_u8(sum[i], vld1q_u8(line + 16 * i));
  }
  uint64_t below(const uint8_t* limits) const {
    uint16x8_t under[2 * kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const int8x16_t is = vreinterpretq_s8_u8(vcltq_u8(sum[i], vld1q_u8(limits + 16 * i)));
      under[2 * i] = vreinterpretq_u16_s16(vmovl_s8(vget_low_s8(is)));
      under[2 * i + 1] = vreinterpretq_u16_s16(vmovl_s8(vget_high_s8(is)));
    }
    return set_of<2 * kVectors>(under);
  }
};

// The 256 bytes of a book in registers. Bytes that are not of a part find 0 there.
struct ByteTable {
  uint8x16x4_t part[4];

  explicit ByteTable(const uint8_t* table) {
    for (int i = 0; i < 4; ++i) part[i] = vld1q_u8_x4(table + 64 * i);
  }
  uint8x16_t operator[](uint8x16_t bytes) const {
    uint8x16_t found = vqtbl4q_u8(part[0], bytes);
    for (int i = 1; i < 4; ++i) {
      const uint8x16_t own = vsubq_u8(bytes, vdupq_n_u8(static_cast<uint8_t>(64 * i)));
      found = vorrq_u8(found, vqtbl4q_u8(part[i], own));
    }
    return found;
  }
};

// Book after book over documents whose sums stay in the first cache, so that a book is loaded once.
void look_up(const FineColumns& columns, int64_t n, uint64_t* below) {
  constexpr int64_t kTogether = 2048;
  uint8_t sums[kTogether], under[64];
  const ByteTable limits(columns.limits);
  for (int64_t first = 0; first < n; first += kTogether, below += kTogether / 64) {
    const int64_t some = n - first < kTogether ? (n - first + 63) / 64 * 64 : kTogether;
    const uint8_t* column = columns.columns + first;
    for (int64_t m = 0; m < columns.books; ++m, column += columns.pitch) {
      const ByteTable book(columns.numbers + m * kWords);
      for (int64_t i = 0; i < some; i += 16) {
        const uint8x16_t numbers = book[vld1q_u8(column + i)];
        vst1q_u8(sums + i, m == 0 ? numbers : vqaddq_u8(numbers, vld1q_u8(sums + i)));
      }
    }
    for (int64_t i = 0; i < some; i += 64) {
      for (int64_t j = i; j < i + 64; j += 16) {
        const uint8x16_t limit =
            columns.scaled ? limits[vld1q_u8(column + j)] : vdupq_n_u8(columns.limits[0]);
        vst1q_u8(under + j - i, vcltq_u8(vld1q_u8(sums + j), limit));
      }
      uint64_t bits = 0;
      for (int64_t j = 0; j < 64; j += 8) {
        uint64_t eight;
        __builtin_memcpy(&eight, under + j, 8);
        bits |= (eight & 0x0101010101010101) * 0x0102040810204080 >> 56 << j;
      }
      below[i / 64] = bits;
    }
  }
}

}  // namespace

const Kernels kNeon = {
    rows_of_any<Neon>,
    kEncode<Neon>,
    kGather<Neon>,
    kPrefixErrors<Neon>,
    kInfoNce<Neon>,
    {{kOf<HalfValues<Neon>>, kOf<FloatValues<Neon>>, kOf<ByteValues<Neon>>,
      kGrouped<ByteValues<Neon>>},
     keep<Neon>,
     lane_maxima<Neon>,
     take<Neon>,
     add_bounds,
     find_bounds,
     find_row<BatchSums>,
     to_half<Neon>,
     crc32c},
    fine_kernels<FineSums>(look_up),
    block_products_of<Neon>,
    unit_row,
};

}  // namespace csrkern
