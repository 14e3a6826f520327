#include "csrkern/index_kernels.hpp"
#include "csrkern/isa.hpp"

namespace csrkern {

const IndexKernels& index_kernels() {
#ifdef CSRKERN_X86
  static const IndexKernels& chosen = isa() == Isa::avx512 ? kIndexKernelsAvx512
                                      : isa() == Isa::avx2 ? kIndexKernelsAvx2
                                                           : kIndexKernelsPortable;
  return chosen;
#else
  return kIndexKernelsPortable;
#endif
}

}  // namespace csrkern
