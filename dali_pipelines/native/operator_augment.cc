// fn.deit_fast.augment, CPU.
#include <map>

#include "augment.h"
#include "operator_parts.h"

namespace deit_fast {

class Augment : public CpuOperator {
 public:
  explicit Augment(const OpSpec& spec) : CpuOperator(spec), kernels_(kernels_of(spec)) {
    const auto output = spec.GetArgument<std::string>("output");
    const std::map<std::string, std::pair<OutputType, dali::DALIDataType>> types = {
        {"uint8", {OutputType::kUint8, DALI_UINT8}},
        {"float16", {OutputType::kFloat16, DALI_FLOAT16}},
        {"bfloat16", {OutputType::kBfloat16, DALI_UINT16}},  // its bits: DALI has no such type
        {"float32", {OutputType::kFloat32, DALI_FLOAT}}};
    DALI_ENFORCE(types.count(output), "unknown output " + output);
    type_ = types.at(output).second;
    spec_.type = types.at(output).first;
    spec_.bilinear = spec.GetArgument<bool>("bilinear");
    spec_.planar = spec.GetArgument<std::string>("layout") == "CHW";
    const auto mean = spec.GetRepeatedArgument<float>("mean"), std = spec.GetRepeatedArgument<float>("std");
    DALI_ENFORCE(mean.size() == kChannels && std.size() == kChannels, "mean and std have three values");
    for (int c = 0; c < kChannels; c++) {
      spec_.scale[c] = 1.f / (255.f * std[c]);
      spec_.shift[c] = -mean[c] / std[c];
      spec_.erase_color[c] = clip_byte(static_cast<int>(std::nearbyint(255.f * mean[c])));
    }
    rectangle_inputs_ = spec_.type == OutputType::kUint8 ? 3 : 4;
    has_operations_ = spec.NumRegularInput() > 1;
    DALI_ENFORCE(
        !has_operations_ || (spec.NumRegularInput() >= 3 && (spec.NumRegularInput() - 3) % rectangle_inputs_ == 0),
        "takes images alone, or with operations and arguments, then for each rectangle erased, anchor, shape and, "
        "but for uint8, content");
  }

 protected:
  bool SetupImpl(std::vector<OutputDesc>& outputs, const Workspace& ws) override {
    const auto& in = ws.Input<dali::CPUBackend>(0);
    DALI_ENFORCE(in.type() == DALI_UINT8 && in.shape().sample_dim() == 3, "takes uint8 images HWC");
    auto shape = in.shape();
    for (int i = 0; i < shape.num_samples(); i++) {
      const auto sample = shape[i];
      DALI_ENFORCE(sample[0] == sample[1] && sample[2] == kChannels, "takes square images of three channels");
      if (spec_.planar) shape.set_tensor_shape(i, dali::TensorShape<3>(kChannels, sample[0], sample[1]));
    }
    outputs = {{shape, type_}};
    return true;
  }

  void RunImpl(Workspace& ws) override {
    const auto& in = ws.Input<dali::CPUBackend>(0);
    ws.Output<dali::CPUBackend>(0).SetLayout(spec_.planar ? "CHW" : "HWC");
    auto& pool = ws.GetThreadPool();
    workers_.resize(pool.NumThreads());
    for (int i = 0; i < in.num_samples(); i++)
      pool.AddWork([&ws, this, i](int thread) { run(ws, i, workers_[thread]); }, in.tensor_shape(i).num_elements());
    pool.RunAll();
  }

 private:
  struct Worker {
    Augmenter augmenter;
    std::vector<EraseRectangle> rectangles;
  };

  void run(Workspace& ws, int sample, Worker& worker) const {
    const auto& in = ws.Input<dali::CPUBackend>(0);
    AugmentSpec spec = spec_;
    spec.size = in.tensor_shape(sample)[0];
    worker.rectangles.clear();
    for (int input = 3; input < ws.NumInput(); input += rectangle_inputs_) {
      if (!*data<int>(ws, input, sample)) continue;
      const int *anchor = data<int>(ws, input + 1, sample), *shape = data<int>(ws, input + 2, sample);
      DALI_ENFORCE(anchor[0] >= 0 && anchor[1] >= 0 && shape[0] >= 0 && shape[1] >= 0 &&
                       anchor[0] + shape[0] <= spec.size && anchor[1] + shape[1] <= spec.size,
                   "a rectangle leaves the image");
      const float* content = rectangle_inputs_ == 4 ? data<float>(ws, input + 3, sample) : nullptr;
      worker.rectangles.push_back({anchor[0], anchor[1], shape[0], shape[1], content});
    }
    const int count = has_operations_ ? ws.Input<dali::CPUBackend>(1).tensor_shape(sample).num_elements() : 0;
    worker.augmenter.run(kernels_, spec, in.tensor<uint8_t>(sample), count ? data<int>(ws, 1, sample) : nullptr,
                         count ? data<double>(ws, 2, sample) : nullptr, count, worker.rectangles,
                         ws.Output<dali::CPUBackend>(0).raw_mutable_tensor(sample));
  }

  const Kernels& kernels_;
  AugmentSpec spec_{};
  dali::DALIDataType type_;
  bool has_operations_;
  int rectangle_inputs_;
  PerThread<Worker> workers_;
};

}  // namespace deit_fast

DALI_REGISTER_OPERATOR(deit_fast__Augment, ::deit_fast::Augment, ::dali::CPU);
DALI_SCHEMA(deit_fast__Augment)
    .DocStr(R"(Operations, normalisation, random erasing and cast of square uint8 images HWC, in one pass.

Inputs: images; if wanted operations int32 [places] and their arguments float64 [places], see operation.py; then for
each rectangle: erased int32, anchor and shape int32 [2] each, and content float32 [h, w, 3], but for output uint8.)")
    .NumInput(1, 64)
    .NumOutput(1)
    .AddOptionalArg("mean", "Of values from 0 to 1.", std::vector<float>{0.f, 0.f, 0.f})
    .AddOptionalArg("std", "Of values from 0 to 1.", std::vector<float>{1.f, 1.f, 1.f})
    .AddOptionalArg<std::string>("output", "uint8 (not normalised), float16, bfloat16 (its bits in uint16), float32.",
                                 "float32")
    .AddOptionalArg<std::string>("layout", "HWC or CHW.", "HWC")
    .AddOptionalArg("bilinear", "Geometry by Pillow's bilinear filter in place of its bicubic.", false)
    .AddOptionalArg<std::string>("simd", "auto, portable, avx2 or avx512.", "auto");
