#!/bin/bash
# DeiT on several machines without a scheduler: docs/scripts/train_ssh.sh "node1 node2" deit_base_distilled /imagenet runs/base
# The package is installed at the same path on all of them (torchrun is called where this shell finds it), and DATA and
# RUN are on a disk that all see. Ctrl-C asks every process to save and to end; the same command goes on from there.
set -eu
read -ra NODES <<< "$1"
RECIPE=$2 DATA=$3 RUN=$4
shift 4
COMMAND=("$(command -v torchrun)" --nnodes "${#NODES[@]}" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3
    --rdzv-id "deit_fast" --rdzv-backend c10d --rdzv-endpoint "${NODES[0]}:${PORT:-29500}"
    -m deit_fast train --config "$RECIPE" --data.path "$DATA" --checkpoint.dir "$RUN" --checkpoint.resume auto "$@")
RUNNING=()
for node in "${NODES[@]}"; do
    setsid ssh -n "$node" "cd $(printf %q "$PWD") && OMP_NUM_THREADS=1 $(printf '%q ' "${COMMAND[@]}")" &
    RUNNING+=($!)
done

# Not to torchrun, which would end the workers at once: only a worker is a python -u with nothing before its -m.
WORKERS="python[0-9.]* -u -m deit_fast train .*--checkpoint.dir $RUN "
trap 'for node in "${NODES[@]}"; do ssh -n "$node" "pkill -USR1 -f $(printf %q "$WORKERS")" || true; done' INT TERM
FAILED=0
for process in "${RUNNING[@]}"; do
    while kill -0 "$process" 2>/dev/null; do wait "$process" || true; done
    wait "$process" || FAILED=$?
done
exit $FAILED
