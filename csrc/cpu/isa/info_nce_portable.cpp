#include "generic/info_nce.hpp"
#include "isa/simd_portable.hpp"

namespace csrkern {

const InfoNceKernels kInfoNceKernelsPortable = {sum_scores<Portable>, to_gradient<Portable>};

}  // namespace csrkern
