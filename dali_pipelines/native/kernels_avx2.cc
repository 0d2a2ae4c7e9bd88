// AVX2: weights in two parts of 16 bits, pmaddwd over pairs of taps.
#include <immintrin.h>

#include "kernels.h"

namespace deit_fast::avx2 {

static inline void halves_of(const float* values, uint16_t* out, int count) {
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), halves);
  }
  for (; i < count; i++) out[i] = to_half(values[i]);
}

static inline void store_pixel(__m128 values, uint8_t* dst) {  // truncates, saturates as it packs; writes a byte more
  __m128i words = _mm_packs_epi32(_mm_cvttps_epi32(values), _mm_setzero_si128());
  int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
  __builtin_memcpy(dst, &bytes, 4);
}

struct TwelveFloats {
  __m256 early;  // pixels 0 and 1, and two channels of 2
  __m128 late;

  explicit TwelveFloats(const uint8_t* src) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
    early = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    late = _mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_srli_si128(bytes, 8)));
  }
};

// The four rows at once, then the four columns of the result; by shuffles, since reading a vector back from memory at
// another offset than it was written at waits for the store to retire (1.7 ms an image in place of 0.5).
static inline void warp_inner(const uint8_t* corner, int stride, float dx, float dy, uint8_t* dst) {
  const TwelveFloats a(corner), b(corner + stride), c(corner + 2 * stride), d(corner + 3 * stride);
  const __m256 early = cubic(a.early, b.early, c.early, d.early, _mm256_set1_ps(dy));
  const __m128 late = cubic(a.late, b.late, c.late, d.late, _mm_set1_ps(dy));
  const __m256 from_three = _mm256_permutevar8x32_ps(early, _mm256_setr_epi32(3, 4, 5, 6, 6, 7, 0, 0));
  const __m128 third = _mm_movelh_ps(_mm256_extractf128_ps(from_three, 1), late);
  const __m128 fourth = _mm_shuffle_ps(late, late, _MM_SHUFFLE(3, 3, 2, 1));
  store_pixel(cubic(_mm256_castps256_ps128(early), _mm256_castps256_ps128(from_three), third, fourth, _mm_set1_ps(dx)),
              dst);
}

#include "kernels_loops.h"

static inline __m256i pair_of(const int16_t* weights) {
  int32_t both;
  __builtin_memcpy(&both, weights, 4);
  return _mm256_set1_epi32(both);
}

static inline __m256i joined(__m256i high, __m256i low, __m256i bias) {
  __m256i sum = _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low), bias);
  return _mm256_srai_epi32(sum, kWeightBits);
}

static inline __m256i two_loads(const uint8_t* first, const uint8_t* second) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(first))),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(second)), 1);
}

// Two rows, one in each half of a register.
static inline void filter_columns_of_two(const uint8_t* first, const uint8_t* second, const Filters& filters,
                                         int origin, uint8_t* dst, uint8_t* next) {
  const __m256i bias = _mm256_set1_epi32(kWeightOne / 2);
  const __m256i early = _mm256_broadcastsi128_si256(  // taps 0 and 1 of each channel, as words
      _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const __m256i late = _mm256_broadcastsi128_si256(  // taps 2 and 3
      _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const int outputs = filters.outputs();
  for (int x = 0; x < outputs; x++) {
    Taps taps = filters.at(x);
    ptrdiff_t at = static_cast<ptrdiff_t>(taps.start - origin) * kChannels;
    __m256i high = _mm256_setzero_si256(), low = _mm256_setzero_si256();
    for (int k = 0; k < taps.count; k += 4, at += 4 * kChannels) {
      __m256i pixels = two_loads(first + at, second + at);
      __m256i one = _mm256_shuffle_epi8(pixels, early), two = _mm256_shuffle_epi8(pixels, late);
      high = _mm256_add_epi32(high, _mm256_madd_epi16(one, pair_of(taps.high + k)));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(two, pair_of(taps.high + k + 2)));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(one, pair_of(taps.low + k)));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(two, pair_of(taps.low + k + 2)));
    }
    __m256i words = _mm256_packs_epi32(joined(high, low, bias), _mm256_setzero_si256());
    __m256i bytes = _mm256_packus_epi16(words, words);
    int32_t a = _mm256_extract_epi32(bytes, 0), b = _mm256_extract_epi32(bytes, 4);
    __builtin_memcpy(dst + x * kChannels, &a, 4);
    __builtin_memcpy(next + x * kChannels, &b, 4);
  }
}

static void filter_columns(const uint8_t* src, ptrdiff_t src_stride, int width_px, int rows, const Filters& filters,
                           int origin, uint8_t* dst, ptrdiff_t dst_stride) {
  int y = 0;
  for (; y + 2 <= rows; y += 2)
    filter_columns_of_two(src + y * src_stride, src + (y + 1) * src_stride, filters, origin, dst + y * dst_stride,
                          dst + (y + 1) * dst_stride);
  if (y < rows)
    filter_columns_plain(src + y * src_stride, src_stride, width_px, 1, filters, origin, dst + y * dst_stride,
                         dst_stride);
}

static void filter_rows(const uint8_t* const* rows, const Taps& taps, int bytes, int32_t bias, uint8_t* dst) {
  const __m256i zero = _mm256_setzero_si256(), offset = _mm256_set1_epi32(bias);
  int i = 0;
  for (; i + 32 <= bytes; i += 32) {
    __m256i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
    for (int k = 0; k < taps.count; k += 2) {
      __m256i one = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[k] + i));
      __m256i two = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[k + 1] + i));
      __m256i early = _mm256_unpacklo_epi8(one, two), late = _mm256_unpackhi_epi8(one, two);
      __m256i pairs[4] = {_mm256_unpacklo_epi8(early, zero), _mm256_unpackhi_epi8(early, zero),
                          _mm256_unpacklo_epi8(late, zero), _mm256_unpackhi_epi8(late, zero)};
      __m256i weights_high = pair_of(taps.high + k), weights_low = pair_of(taps.low + k);
      for (int q = 0; q < 4; q++) {
        high[q] = _mm256_add_epi32(high[q], _mm256_madd_epi16(pairs[q], weights_high));
        low[q] = _mm256_add_epi32(low[q], _mm256_madd_epi16(pairs[q], weights_low));
      }
    }
    // packing undoes the order of unpacking
    __m256i early = _mm256_packs_epi32(joined(high[0], low[0], offset), joined(high[1], low[1], offset));
    __m256i late = _mm256_packs_epi32(joined(high[2], low[2], offset), joined(high[3], low[3], offset));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i), _mm256_packus_epi16(early, late));
  }
  filter_rows_plain(rows, taps, i, bytes, bias, dst);
}

static void lookup(uint8_t* pixels, int count_px, const uint8_t table[3][256]) {
  lookup_plain(pixels, 0, count_px, table);
}

extern const Kernels kKernels;
const Kernels kKernels = {"avx2",  filter_columns, filter_rows, warp,      color, luma_sum,
                          sharpen, box_rows,       lookup,      normalize, store};

}  // namespace deit_fast::avx2
