#!/bin/bash
# DeiT on several machines without a scheduler: docs/scripts/train_ssh.sh "node1 node2" deit_base_distilled /imagenet runs/base
# The package is installed at the same path on all of them, and DATA and RUN are on a disk that all see.
set -eu
read -ra NODES <<< "$1"
RECIPE=$2 DATA=$3 RUN=$4
shift 4
for node in "${NODES[@]}"; do
    ssh "$node" "cd '$PWD' && OMP_NUM_THREADS=1 torchrun --nnodes ${#NODES[@]} --nproc-per-node 8 --max-restarts 3 \
        --rdzv-id deit_fast --rdzv-backend c10d --rdzv-endpoint ${NODES[0]}:29500 \
        -m deit_fast train --config '$RECIPE' --data.path '$DATA' --checkpoint.dir '$RUN' --checkpoint.resume auto $*" &
done
wait
