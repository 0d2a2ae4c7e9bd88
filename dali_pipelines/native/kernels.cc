#include "kernels.h"

#include <cstring>

namespace deit_fast {

namespace portable {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

namespace {

struct Levels {
  const Kernels* known[3];
  int count = 0;

  Levels() {
    known[count++] = &portable::kKernels;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    if (has_avx2) known[count++] = &avx2::kKernels;
    // Ice Lake, Zen 4 and later
    if (has_avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vnni"))
      known[count++] = &avx512::kKernels;
#endif
  }
};

const Levels& levels() {
  static const Levels found;
  return found;
}

}  // namespace

int level_count() { return levels().count; }

const Kernels* level(int index) { return levels().known[index]; }

const Kernels* find_level(const char* name) {
  if (std::strcmp(name, "auto") == 0) return level(level_count() - 1);
  for (int i = 0; i < level_count(); i++)
    if (std::strcmp(level(i)->name, name) == 0) return level(i);
  return nullptr;
}

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded half in the lowest bits
    float shifted;
    std::memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    std::memcpy(&magnitude, &shifted, 4);
    return static_cast<uint16_t>(sign | (magnitude - 0x3f000000));
  }
  magnitude += 0xfff + ((magnitude >> 13) & 1) - (112u << 23);
  return static_cast<uint16_t>(sign | (magnitude >> 13));
}

}  // namespace deit_fast
