#!/bin/sh
# One step of a round of self-training, or one shard of it: step.sh STEP [I N]
#
# Steps: ask, answer, judge and evaluate, which take shards; gather ask, …, which makes the whole of them; pair and dpo.
# Settings are environment variables (round.env); the loops beside this file call it on one machine or on many. A step
# that was stopped goes on where it was, and one that is done does nothing.
set -eu
: "${POLICY:?the folder of the policy}" "${ROOT:?the image root}" "${NEW:?images to ask about, inside the root}"
: "${LABELLED:?labelled conversations}" "${TEST:?samples of a benchmark}"
: "${JUDGE_FLAGS:?the expert}" "${WORK:?the folder of the round, on a disk that all machines share}"
stllava=${STLLAVA:-stllava}
step=$1
if [ "$step" = gather ]; then exec $stllava gather "$WORK/$2"; fi
shard=${2:+--shard $2/$3}
case $step in
ask)
  exec $stllava ask --policy "$POLICY" --images "$NEW" --root "$ROOT" --to "$WORK/ask" ${ASK_FLAGS:-} $shard ;;
answer)
  exec $stllava answer --policy "$POLICY" --questions "$WORK/ask" --root "$ROOT" --to "$WORK/answer" \
    ${ANSWER_FLAGS:-} $shard ;;
judge)
  exec $stllava judge --answers "$WORK/answer" --to "$WORK/judge" $JUDGE_FLAGS $shard ;;
pair)
  exec $stllava pair --answers "$WORK/answer" --judgments "$WORK/judge" --to "$WORK/pair" ${PAIR_FLAGS:-} ;;
dpo)
  exec $stllava dpo --policy "$POLICY" --preferences "$WORK/pair" --images "$ROOT" --conversations "$LABELLED" \
    --to "$WORK/dpo" ${DPO_FLAGS:-} ;;
evaluate)
  exec $stllava evaluate --policy "$WORK/dpo" --samples "$TEST" --root "$ROOT" --to "$WORK/evaluate" \
    ${EVALUATE_FLAGS:-} $shard ;;
*)
  echo "step.sh: no step $step" >&2
  exit 2 ;;
esac
