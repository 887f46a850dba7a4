#!/bin/sh
# A round on Kubernetes: an indexed Job for each stage, one after the other.
#
#     grep -v '^#' examples/round.env | sed "s/ *#.*//; s/'//g" > /tmp/round.env
#     kubectl create configmap stllava-round --from-env-file=/tmp/round.env
#     IMAGE=registry.example/stllava:1 SHARDS=8 sh examples/kubernetes.sh
set -eu
here=$(dirname "$0")

job() {  # job NAME COUNT GPUS words of step.sh…
  name=$1 count=$2 gpus=$3
  shift 3
  # A job of this name may have ended in an earlier round; what it finished is not done again.
  kubectl delete job "stllava-$name" --ignore-not-found
  sed -e "s|WORDS|$*|; s|NAME|$name|; s|COUNT|$count|g; s|IMAGE|$IMAGE|; s|GPUS|$gpus|" "$here/kubernetes.yaml" | kubectl apply -f -
  while :; do
    case $(kubectl get job "stllava-$name" -o 'jsonpath={.status.conditions[?(@.status=="True")].type}') in
    *Complete*) return ;;
    *Failed*) echo "kubernetes.sh: stllava-$name failed; put right what its log says and give the command again" >&2; exit 1 ;;
    esac
    sleep 5
  done
}

shards() {
  job "$1" "$SHARDS" 1 "$1" '$((JOB_COMPLETION_INDEX + 1))' '$SHARDS'
  job "gather-$1" 1 0 gather "$1"
}

shards ask
shards answer
shards judge
job pair 1 0 pair
job dpo 1 1 dpo
shards evaluate
