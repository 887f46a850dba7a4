#!/bin/sh
# A round on a Slurm cluster: an array of jobs for each stage, each step when the one before it has ended well.
#
#     set -a; . examples/round.env; set +a; sh examples/slurm.sh
#
# SBATCH_FLAGS holds what your cluster wants of every job (--account, --partition, --time), GPU_FLAGS of those with a GPU.
# The folder in which this is given, the one with the examples, and WORK must lie on the shared disk. A job that was killed is
# requeued and goes on where it was.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
after=

submit() {  # submit flags… -- words of step.sh
  flags=
  while [ "$1" != -- ]; do flags="$flags $1"; shift; done
  shift
  after=$(sbatch --parsable --export=ALL --requeue ${SBATCH_FLAGS:-} $flags ${after:+--dependency=afterok:$after} \
    --kill-on-invalid-dep=yes --wrap "sh '$here/step.sh' $*")
  after=${after%%;*}  # On a federation it says the cluster too.
  echo "$after: $*"
}

shards() {
  submit --job-name="$1" --array="1-$SHARDS" ${GPU_FLAGS:---gpus=1} -- "$1" '$SLURM_ARRAY_TASK_ID' "$SHARDS"
  submit --job-name="gather-$1" -- gather "$1"
}

shards ask
shards answer
shards judge
submit --job-name=pair -- pair
submit --job-name=dpo ${GPU_FLAGS:---gpus=1} -- dpo
shards evaluate
