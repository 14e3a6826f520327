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
  static constexpr int kVectors = kFineBatch / 8;

  uint16x8_t sum[kVectors] = {};

  void add(const uint16_t* line) {
    for (int i = 0; i < kVectors; ++i) sum[i] = vaddq_u16(sum[i], vld1q_u16(line + 8 * i));
  }
  uint32_t reached(const uint16_t* bars) const {
    uint16x8_t over[kVectors];
    for (int i = 0; i < kVectors; ++i) over[i] = vcgeq_u16(sum[i], vld1q_u16(bars + 8 * i));
    return static_cast<uint32_t>(set_of<kVectors>(over));
  }
  void store(uint16_t* sums) const {
    for (int i = 0; i < kVectors; ++i) vst1q_u16(sums + 8 * i, sum[i]);
  }
};

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
    kFine<FineSums>,
    block_products_of<Neon>,
};

}  // namespace csrkern
