// A C interface to the parts, for tests and fuzzing: no DALI in between.
#include <cstring>
#include <stdexcept>

#include "augment.h"
#include "crop.h"
#include "jpeg.h"

using namespace deit_fast;

namespace {

const Kernels& kernels_of(const char* name) {
  const Kernels* found = find_level(name);
  if (!found) throw std::runtime_error(std::string("no level ") + name);
  return *found;
}

void put(const std::string& text, char* out, int room) {
  std::strncpy(out, text.c_str(), room - 1);
  out[room - 1] = 0;
}

}  // namespace

extern "C" {

int deit_fast_level_count() { return level_count(); }
const char* deit_fast_level_name(int index) { return level(index)->name; }
// Read from the file before it is loaded (plugin.py).
const char* deit_fast_built_for() { return "deit_fast built for DALI " DEIT_FAST_DALI_VERSION; }
int deit_fast_jpeg_supported() { return jpeg_supported(); }
int deit_fast_jpeg_loaded() { return jpeg_library_loaded(); }
int deit_fast_is_plain_jpeg(const uint8_t* bytes, size_t size) { return is_plain_jpeg(bytes, size); }

void deit_fast_load_jpeg(const char* path, char* error, int room) { put(load_jpeg_library(path), error, room); }

// Resizes the crop `box` (top, left, height, width) of an image [.., width, 3] to `out_height` x `out_width`, of which
// a window of size x size from (top, left) on comes out.
void deit_fast_resize(const char* level_name, const uint8_t* pixels, int width, const int* box, int out_height,
                      int out_width, int top, int left, int size, int flip, int linear, uint8_t* out) {
  Resizer resizer;
  resizer.plan({box[2], box[3], out_height, out_width, top, left, size, flip != 0,
                linear ? Interpolation::kLinear : Interpolation::kCubic});
  resizer.run(kernels_of(level_name), pixels + (box[0] * width + box[1]) * kChannels, width * kChannels,
              {0, 0, box[2], box[3]}, out);
}

void deit_fast_augment(const char* level_name, const uint8_t* image, int size, const int32_t* operations,
                       const double* arguments, int count, int bilinear, int type, int planar, const float* scale,
                       const float* shift, void* out) {
  AugmentSpec spec{size, bilinear != 0, planar != 0, static_cast<OutputType>(type), {}, {}, {}};
  std::memcpy(spec.scale, scale, sizeof spec.scale);
  std::memcpy(spec.shift, shift, sizeof spec.shift);
  Augmenter augmenter;
  augmenter.run(kernels_of(level_name), spec, image, operations, arguments, count, {}, out);
}

// Decodes the part `box` of a JPEG into out [height, width, 3]; its whole size into shape. "" or an error.
void deit_fast_decode(const uint8_t* bytes, size_t size, const int* box, int* shape, uint8_t* out, char* error,
                      int room) {
  try {
    JpegDecoder decoder;
    decoder.open(bytes, size);
    shape[0] = decoder.height();
    shape[1] = decoder.width();
    if (out) {
      decoder.decode({box[0], box[1], box[2], box[3]});
      const Rectangle& held = decoder.held();
      for (int y = 0; y < box[2]; y++)
        std::memcpy(out + static_cast<size_t>(y) * box[3] * kChannels,
                    decoder.pixels() + (box[0] - held.top + y) * decoder.stride() + (box[1] - held.left) * kChannels,
                    static_cast<size_t>(box[3]) * kChannels);
    }
    put("", error, room);
  } catch (const std::runtime_error& caught) {
    put(caught.what(), error, room);
  }
}

}  // extern "C"
