#include "generic/info_nce.hpp"
#include "isa/simd_avx2.hpp"

namespace csrkern {

const InfoNceKernels kInfoNceKernelsAvx2 = {sum_scores<Avx2>, to_gradient<Avx2>};

}  // namespace csrkern
