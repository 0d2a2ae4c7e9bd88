#include "jpeg.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#if __has_include(<jpeglib.h>) && !defined(DEIT_FAST_NO_JPEG)
#include <dlfcn.h>
#include <jpeglib.h>

#include <csetjmp>
#include <cstddef>
#include <cstdio>
#define DEIT_FAST_HAS_JPEG 1
#endif

namespace deit_fast {

bool is_plain_jpeg(const uint8_t* bytes, size_t size) {
  constexpr size_t kMostPixels = size_t{1} << 28;
  if (size < 4 || bytes[0] != 0xff || bytes[1] != 0xd8) return false;
  size_t at = 2;
  while (at + 4 <= size && bytes[at] == 0xff) {
    const uint8_t marker = bytes[at + 1];
    if (marker == 0xff) {  // fill
      at++;
      continue;
    }
    const size_t length = bytes[at + 2] << 8 | bytes[at + 3];
    if (marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc) {  // a frame header
      if (marker > 0xc2 || at + 10 > size) return false;                                           // not Huffman-coded
      const size_t height = bytes[at + 5] << 8 | bytes[at + 6], width = bytes[at + 7] << 8 | bytes[at + 8];
      const int components = bytes[at + 9];
      if (bytes[at + 4] != 8 || !height || !width || height * width > kMostPixels) return false;
      if (components != 1 && components != 3) return false;
      for (size_t end = size - 1; end > at; end--)
        if (bytes[end] == 0xd9 && bytes[end - 1] == 0xff) return true;
      return false;
    }
    if (length < 2 || marker == 0xda || marker == 0xd9) return false;
    at += 2 + length;
  }
  return false;
}

#if DEIT_FAST_HAS_JPEG

bool jpeg_supported() { return true; }

namespace {

struct Library {
  decltype(&::jpeg_std_error) std_error;
  decltype(&::jpeg_CreateDecompress) create;
  decltype(&::jpeg_destroy_decompress) destroy;
  decltype(&::jpeg_abort_decompress) abort;
  decltype(&::jpeg_mem_src) mem_src;
  decltype(&::jpeg_read_header) read_header;
  decltype(&::jpeg_start_decompress) start;
  decltype(&::jpeg_crop_scanline) crop;
  decltype(&::jpeg_skip_scanlines) skip;
  decltype(&::jpeg_read_scanlines) read;
};

Library library;
bool loaded = false;

template <class Function>
bool find(void* handle, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  return *function != nullptr;
}

struct Errors {
  jpeg_error_mgr manager;
  jmp_buf caller;
  char message[JMSG_LENGTH_MAX];
};

void fail(j_common_ptr info) {
  auto* errors = reinterpret_cast<Errors*>(info->err);
  info->err->format_message(info, errors->message);
  std::longjmp(errors->caller, 1);
}

void keep_quiet(j_common_ptr, int) {}

// What region decoding leaves wrong at its borders, where smooth chroma misses its neighbour, with some to spare.
constexpr int kMarginPx = 8;
constexpr int kRowsAtOnce = 16;

}  // namespace

struct JpegDecoder::State {
  jpeg_decompress_struct info;
  Errors errors;
  bool created = false;
};

bool jpeg_library_loaded() { return loaded; }

JpegDecoder::JpegDecoder() : state_(new State()) {
  if (!loaded) return;
  state_->info.err = library.std_error(&state_->errors.manager);
  state_->errors.manager.error_exit = fail;
  state_->errors.manager.emit_message = keep_quiet;
  state_->created = setjmp(state_->errors.caller) == 0 &&
                    (library.create(&state_->info, JPEG_LIB_VERSION, sizeof(jpeg_decompress_struct)), true);
}

JpegDecoder::~JpegDecoder() {
  if (state_->created) library.destroy(&state_->info);
  delete state_;
}

std::string load_jpeg_library(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) return dlerror();
  Library found;
  if (!find(handle, "jpeg_std_error", &found.std_error) || !find(handle, "jpeg_CreateDecompress", &found.create) ||
      !find(handle, "jpeg_destroy_decompress", &found.destroy) ||
      !find(handle, "jpeg_abort_decompress", &found.abort) || !find(handle, "jpeg_mem_src", &found.mem_src) ||
      !find(handle, "jpeg_read_header", &found.read_header) || !find(handle, "jpeg_start_decompress", &found.start) ||
      !find(handle, "jpeg_crop_scanline", &found.crop) || !find(handle, "jpeg_skip_scanlines", &found.skip) ||
      !find(handle, "jpeg_read_scanlines", &found.read))
    return "it is no libjpeg-turbo";
  library = found;
  loaded = true;
  JpegDecoder probe;  // libjpeg compares its version and the size of its structure with the header's
  if (probe.usable()) return "";
  loaded = false;
  return "it is of another ABI than the header of the build";
}

bool JpegDecoder::usable() const { return state_->created; }

int JpegDecoder::height() const { return static_cast<int>(state_->info.image_height); }
int JpegDecoder::width() const { return static_cast<int>(state_->info.image_width); }

void JpegDecoder::open(const uint8_t* bytes, size_t size) {
  if (!state_->created) throw std::runtime_error("no JPEG library is loaded");
  if (setjmp(state_->errors.caller)) throw std::runtime_error(state_->errors.message);
  auto* info = &state_->info;
  library.abort(info);  // what an earlier image left unfinished
  library.mem_src(info, const_cast<uint8_t*>(bytes), size);
  library.read_header(info, TRUE);
  info->out_color_space = JCS_RGB;
}

void JpegDecoder::decode(const Rectangle& needed) {
  auto* info = &state_->info;
  if (setjmp(state_->errors.caller)) throw std::runtime_error(state_->errors.message);
  library.start(info);
  JDIMENSION left = std::max(needed.left - kMarginPx, 0);
  JDIMENSION width = std::min(needed.left + needed.width + kMarginPx, this->width()) - left;
  if (static_cast<int>(width) < this->width()) library.crop(info, &left, &width);
  const int top = std::max(needed.top - kMarginPx, 0);
  if (top) library.skip(info, top);
  held_ = {top, static_cast<int>(left), needed.top + needed.height - top, static_cast<int>(width)};
  pixels_.resize(held_.height * stride());
  for (int y = 0; y < held_.height;) {
    JSAMPROW rows[kRowsAtOnce];
    int count = std::min(kRowsAtOnce, held_.height - y);
    for (int k = 0; k < count; k++) rows[k] = pixels_.data() + (y + k) * stride();
    y += library.read(info, rows, count);
  }
}

#else

bool jpeg_supported() { return false; }
bool jpeg_library_loaded() { return false; }
std::string load_jpeg_library(const char*) { return "this build had no jpeglib.h"; }

struct JpegDecoder::State {};
JpegDecoder::JpegDecoder() : state_(nullptr) {}
JpegDecoder::~JpegDecoder() = default;
bool JpegDecoder::usable() const { return false; }
int JpegDecoder::height() const { return 0; }
int JpegDecoder::width() const { return 0; }
void JpegDecoder::open(const uint8_t*, size_t) { throw std::runtime_error("this build had no jpeglib.h"); }
void JpegDecoder::decode(const Rectangle&) { throw std::runtime_error("this build had no jpeglib.h"); }

#endif

}  // namespace deit_fast
