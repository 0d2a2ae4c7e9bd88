// AVX-512 with VNNI and VBMI: weights in three parts of 8 bits, vpdpbusd over groups of four taps; tables by vpermi2b.
#include <immintrin.h>

#include "kernels.h"

namespace deit_fast::avx512 {

static inline void halves_of(const float* values, uint16_t* out, int count) {
  int i = 0;
  for (; i + 16 <= count; i += 16) {
    __m256i halves = _mm512_cvtps_ph(_mm512_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), halves);
  }
  for (; i < count; i++) out[i] = to_half(values[i]);
}

static inline void store_pixel(__m128 values, uint8_t* dst) {  // truncates, saturates as it packs; writes a byte more
  __m128i words = _mm_packs_epi32(_mm_cvttps_epi32(values), _mm_setzero_si128());
  int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
  __builtin_memcpy(dst, &bytes, 4);
}

static inline __m512 sixteen_floats(const uint8_t* src) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src))));
}

template <int kFirst>
static inline __m128 lanes_from(__m512 all) {
  __m512i lanes = _mm512_castps_si512(all);
  return _mm_castsi128_ps(_mm512_castsi512_si128(_mm512_alignr_epi32(lanes, lanes, kFirst)));
}

// The four rows at once, then the four columns of the result.
static inline void warp_inner(const uint8_t* corner, int stride, float dx, float dy, uint8_t* dst) {
  const __m512 columns =
      cubic(sixteen_floats(corner), sixteen_floats(corner + stride), sixteen_floats(corner + 2 * stride),
            sixteen_floats(corner + 3 * stride), _mm512_set1_ps(dy));
  store_pixel(cubic(lanes_from<0>(columns), lanes_from<3>(columns), lanes_from<6>(columns), lanes_from<9>(columns),
                    _mm_set1_ps(dx)),
              dst);
}

#include "kernels_loops.h"

static inline __m512i four_of(const int8_t* weights) {
  int32_t all;
  __builtin_memcpy(&all, weights, 4);
  return _mm512_set1_epi32(all);
}

static inline __m512i joined(const __m512i parts[3], __m512i bias) {
  __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(parts[2], 16), _mm512_slli_epi32(parts[1], 8));
  return _mm512_srai_epi32(_mm512_add_epi32(_mm512_add_epi32(sum, parts[0]), bias), kWeightBits);
}

static inline __m128i load16(const uint8_t* src) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(src)); }

// Four rows, one in each quarter of a register.
static inline void filter_columns_of_four(const uint8_t* src, ptrdiff_t src_stride, const Filters& filters, int origin,
                                          uint8_t* dst, ptrdiff_t dst_stride) {
  const __m512i bias = _mm512_set1_epi32(kWeightOne / 2), zero = _mm512_setzero_si512();
  const __m512i by_channel = _mm512_broadcast_i32x4(  // four taps of each channel
      _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
  const int outputs = filters.outputs();
  for (int x = 0; x < outputs; x++) {
    Taps taps = filters.at(x);
    const uint8_t* p = src + static_cast<ptrdiff_t>(taps.start - origin) * kChannels;
    __m512i parts[3] = {zero, zero, zero};
    for (int k = 0; k < taps.count; k += 4, p += 4 * kChannels) {
      __m512i pixels = _mm512_castsi128_si512(load16(p));
      pixels = _mm512_inserti32x4(pixels, load16(p + src_stride), 1);
      pixels = _mm512_inserti32x4(pixels, load16(p + 2 * src_stride), 2);
      pixels = _mm512_inserti32x4(pixels, load16(p + 3 * src_stride), 3);
      pixels = _mm512_shuffle_epi8(pixels, by_channel);
      for (int b = 0; b < 3; b++) parts[b] = _mm512_dpbusd_epi32(parts[b], pixels, four_of(taps.bytes[b] + k));
    }
    __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(joined(parts, bias), zero));
    uint8_t* target = dst + x * kChannels;
    int32_t row[4];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row), bytes);
    for (int j = 0; j < 4; j++) __builtin_memcpy(target + j * dst_stride, &row[j], 4);
  }
}

static void filter_columns(const uint8_t* src, ptrdiff_t src_stride, int width_px, int rows, const Filters& filters,
                           int origin, uint8_t* dst, ptrdiff_t dst_stride) {
  int y = 0;
  for (; y + 4 <= rows; y += 4)
    filter_columns_of_four(src + y * src_stride, src_stride, filters, origin, dst + y * dst_stride, dst_stride);
  if (y < rows)
    filter_columns_plain(src + y * src_stride, src_stride, width_px, rows - y, filters, origin, dst + y * dst_stride,
                         dst_stride);
}

static void filter_rows(const uint8_t* const* rows, const Taps& taps, int bytes, int32_t bias, uint8_t* dst) {
  const __m512i zero = _mm512_setzero_si512(), offset = _mm512_set1_epi32(bias);
  for (int i = 0; i < bytes; i += 64) {
    __mmask64 mask = bytes - i >= 64 ? ~0ull : (1ull << (bytes - i)) - 1;
    __m512i parts[4][3];
    for (auto& quarter : parts)
      for (auto& part : quarter) part = zero;
    for (int k = 0; k < taps.count; k += 4) {
      __m512i a = _mm512_maskz_loadu_epi8(mask, rows[k] + i), b = _mm512_maskz_loadu_epi8(mask, rows[k + 1] + i);
      __m512i c = _mm512_maskz_loadu_epi8(mask, rows[k + 2] + i), d = _mm512_maskz_loadu_epi8(mask, rows[k + 3] + i);
      __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
      __m512i cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
      __m512i fours[4] = {_mm512_unpacklo_epi16(ab_low, cd_low), _mm512_unpackhi_epi16(ab_low, cd_low),
                          _mm512_unpacklo_epi16(ab_high, cd_high), _mm512_unpackhi_epi16(ab_high, cd_high)};
      for (int b3 = 0; b3 < 3; b3++) {
        __m512i weights = four_of(taps.bytes[b3] + k);
        for (int q = 0; q < 4; q++) parts[q][b3] = _mm512_dpbusd_epi32(parts[q][b3], fours[q], weights);
      }
    }
    // packing undoes the order of unpacking
    __m512i early = _mm512_packs_epi32(joined(parts[0], offset), joined(parts[1], offset));
    __m512i late = _mm512_packs_epi32(joined(parts[2], offset), joined(parts[3], offset));
    _mm512_mask_storeu_epi8(dst + i, mask, _mm512_packus_epi16(early, late));
  }
}

struct ByteTable {
  __m512i quarters[4];

  explicit ByteTable(const uint8_t table[256]) {
    for (int q = 0; q < 4; q++) quarters[q] = _mm512_loadu_si512(table + 64 * q);
  }

  __m512i operator()(__m512i index) const {
    __m512i low = _mm512_permutex2var_epi8(quarters[0], index, quarters[1]);
    __m512i high = _mm512_permutex2var_epi8(quarters[2], index, quarters[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
  }
};

static void lookup(uint8_t* pixels, int count_px, const uint8_t table[3][256]) {
  const ByteTable red(table[0]), green(table[1]), blue(table[2]);
  // bit i of these is set where byte i of a vector is green, blue; a vector later the pattern has moved by 64 % 3 = 1
  constexpr __mmask64 kEveryThird = 0x9249249249249249ull;
  const bool same = __builtin_memcmp(table[0], table[1], 256) == 0 && __builtin_memcmp(table[0], table[2], 256) == 0;
  int bytes = count_px * kChannels, i = 0;
  for (int phase = 0; i + 64 <= bytes; i += 64, phase = (phase + 1) % 3) {
    __m512i index = _mm512_loadu_si512(pixels + i), found = red(index);
    if (!same) {  // byte j is of channel (j + phase) % 3
      __mmask64 is_green = kEveryThird << ((4 - phase) % 3), is_blue = kEveryThird << ((5 - phase) % 3);
      found = _mm512_mask_mov_epi8(found, is_green, green(index));
      found = _mm512_mask_mov_epi8(found, is_blue, blue(index));
    }
    _mm512_storeu_si512(pixels + i, found);
  }
  for (; i < bytes; i++) pixels[i] = table[i % kChannels][pixels[i]];
}

extern const Kernels kKernels;
const Kernels kKernels = {"avx512", filter_columns, filter_rows, warp,      color, luma_sum,
                          sharpen,  box_rows,       lookup,      normalize, store};

}  // namespace deit_fast::avx512
