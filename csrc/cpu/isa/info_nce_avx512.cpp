#include "generic/info_nce.hpp"
#include "isa/simd_avx512.hpp"

namespace csrkern {

const InfoNceKernels kInfoNceKernelsAvx512 = {sum_scores<Avx512>, to_gradient<Avx512>};

}  // namespace csrkern
