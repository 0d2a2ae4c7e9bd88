// The CUDA twins' bodies run by one thread, for the tests, and what a launch needs from the host.
#include <vector>

#include "twins.h"

using namespace deit_fast;

namespace {

struct SerialBlock {
  int rank() const { return 0; }
  int count() const { return 1; }
  void sync() {}
  void add(uint32_t* target, uint32_t value) { *target += value; }
};

}  // namespace

extern "C" {

void deit_fast_twin_sizes(int sizes[3]) {
  sizes[0] = sizeof(TwinCrop);
  sizes[1] = sizeof(TwinView);
  sizes[2] = sizeof(TwinSpec);
}

// Numbers of a crop's scratch: filters (int32) and bytes in between.
void deit_fast_twin_scratch(int height, int width, int size, int64_t numbers[2]) {
  const FilterAxis columns = {width, size, Interpolation::kCubic}, rows = {height, size, Interpolation::kCubic};
  numbers[0] = static_cast<int64_t>(size) * (4 + columns.most_taps() + rows.most_taps());
  numbers[1] = static_cast<int64_t>(height > width ? height : width) * size * kChannels;
}

// The parts of a view that come from the host: affine maps and blur boxes.
void deit_fast_twin_prepare(TwinView* view, int size) {
  for (int k = 0; k < view->operation_count; k++) {
    const int operation = view->operations[k];
    view->maps[k] = affine_of(operation, view->arguments[k], size);
    view->boxes[k] = blur_box(operation == kGaussianBlur ? static_cast<float>(view->arguments[k]) : 1.f);
  }
}

void deit_fast_twin_crop(const TwinCrop* crop) {
  SerialBlock block;
  twin_crop(block, *crop);
}

void deit_fast_twin_augment(const TwinSpec* spec, const TwinView* view) {
  SerialBlock block;
  TwinShared shared;
  twin_augment(block, shared, *spec, *view);
}

}  // extern "C"
