#include "csrkern/isa.hpp"

#ifdef CSRKERN_X86
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace csrkern {
namespace {

#ifdef CSRKERN_X86
// __builtin_cpu_supports of clang 14 does not know these two.
bool has_f16c_and_lzcnt() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) &&
         __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & bit_LZCNT);
}
#endif

Isa best_isa() {
#ifdef CSRKERN_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt") && has_f16c_and_lzcnt();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa choose() {
  const Isa best = best_isa();
  const char* asked = std::getenv("CSRKERN_ISA");
  if (asked == nullptr || *asked == '\0') return best;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (std::string(asked) != isa_name(isa)) continue;
    if (isa > best) {
      throw std::runtime_error(std::string("CSRKERN_ISA=") + asked +
                               ": this processor supports at most " + isa_name(best));
    }
    return isa;
  }
  throw std::runtime_error(std::string("CSRKERN_ISA=") + asked +
                           ": expected portable, avx2 or avx512");
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

bool multiplies_bfloat16() {
#ifdef CSRKERN_X86
  unsigned a, b, c, d;
  if (best_isa() != Isa::avx512) return false;
  const bool amx = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
  const bool avx512 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  return amx || avx512;
#else
  return false;
#endif
}

}  // namespace csrkern
