#!/bin/sh
# A round on one machine: every stage as SHARDS processes at once, one for each GPU where there are some.
#
#     set -a; . examples/round.env; set +a; sh examples/loop.sh
set -eu
here=$(dirname "$0")
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)

shards() {  # all shards of a step at once, then the whole of them
  running=
  for number in $(seq "$SHARDS"); do
    if [ "$gpus" -gt 0 ]; then export CUDA_VISIBLE_DEVICES=$(((number - 1) % gpus)); fi
    sh "$here/step.sh" "$1" "$number" "$SHARDS" &
    running="$running $!"
  done
  failed=0
  for process in $running; do wait "$process" || failed=1; done
  unset CUDA_VISIBLE_DEVICES
  [ "$failed" = 0 ] || { echo "loop.sh: a shard of $1 failed; the same command goes on" >&2; exit 1; }
  sh "$here/step.sh" gather "$1"
}

shards ask
shards answer
shards judge
sh "$here/step.sh" pair
sh "$here/step.sh" dpo
shards evaluate
