#include "generic/topk_relu.hpp"
#include "isa/simd_avx2.hpp"

namespace csrkern {

void topk_relu_rows_avx2(const TopkRelu& args, int64_t begin, int64_t end,
                         const TopkScratch& scratch) {
  rows_of_any<Avx2>(args, begin, end, scratch);
}

}  // namespace csrkern
