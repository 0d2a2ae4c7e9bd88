// Plain C++: the level that every CPU has, aarch64 too, and the one that the others have to equal.
#include "kernels.h"

namespace deit_fast::portable {

static inline void halves_of(const float* values, uint16_t* out, int count) {
  for (int i = 0; i < count; i++) out[i] = to_half(values[i]);
}

// The four rows at once, then the four columns of the result.
static inline void warp_inner(const uint8_t* corner, int stride, float dx, float dy, uint8_t* dst) {
  float columns[4 * kChannels];
  for (int i = 0; i < 4 * kChannels; i++)
    columns[i] = cubic<float>(corner[i], corner[stride + i], corner[2 * stride + i], corner[3 * stride + i], dy);
  for (int c = 0; c < kChannels; c++)
    dst[c] = truncate_byte(cubic(columns[c], columns[3 + c], columns[6 + c], columns[9 + c], dx));
}

#include "kernels_loops.h"

static void filter_rows(const uint8_t* const* rows, const Taps& taps, int bytes, int32_t bias, uint8_t* dst) {
  filter_rows_plain(rows, taps, 0, bytes, bias, dst);
}

static void lookup(uint8_t* pixels, int count_px, const uint8_t table[3][256]) {
  lookup_plain(pixels, 0, count_px, table);
}

extern const Kernels kKernels;
const Kernels kKernels = {
    "portable", filter_columns_plain, filter_rows, warp, color, luma_sum, sharpen, box_rows, lookup, normalize, store};

}  // namespace deit_fast::portable
