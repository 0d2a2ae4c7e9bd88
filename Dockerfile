# deit_fast on NVIDIA's PyTorch container, which brings torch, DALI and apex built for each other and for its CUDA.
#   docker build -t deit_fast .
#   docker run --gpus all --ipc=host --ulimit nofile=65536 -v /imagenet:/imagenet:ro -v $PWD/runs:/workspace/runs deit_fast \
#       torchrun --nproc-per-node 8 -m deit_fast train --config deit_base_distilled --data.path /imagenet
# Not built by this project's tests, which have no GPU and no container registry: see docs/gpu.md.
# 25.12 is the first whose torch (2.10.0a0, CUDA 13.1) pip takes for the >=2.9 that is asked for: 2.9.0a0 is less than 2.9.
ARG PYTORCH_IMAGE=nvcr.io/nvidia/pytorch:25.12-py3
FROM ${PYTORCH_IMAGE}
WORKDIR /opt/deit_fast
COPY setup.py pyproject.toml README.md LICENSE ./
COPY deit_fast deit_fast
COPY dali_pipelines dali_pipelines
COPY kernels kernels
COPY benchmarks benchmarks
# The container's constraints (/etc/pip/constraint.txt) keep pip from replacing its torch by another. DALI is taken out of
# them: the container's stays if it is at least 2.0, else pip brings a newer one.
RUN sed -i '/^nvidia-dali/d' /etc/pip/constraint.txt && pip install --no-cache-dir --no-build-isolation '.[cuda13]' \
    && cd / && python -c 'import torch, nvidia.dali.fn, deit_fast.dali_pipelines.loader, deit_fast.trainer'
WORKDIR /workspace
ENV OMP_NUM_THREADS=1
CMD ["deit-fast", "--help"]
