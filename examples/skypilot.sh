#!/bin/sh
# A round on SkyPilot: the nodes of skypilot.yaml are launched once, then given one step after the other.
#
#     sh examples/skypilot.sh
set -eu
here=$(dirname "$0")
cluster=${CLUSTER:-stllava}
# Where a step fails the nodes stay for half an hour, in which the same command goes on.
sky launch --yes --cluster "$cluster" --idle-minutes-to-autostop 30 --down --env STEP=ask "$here/skypilot.yaml"
for step in 'gather ask' answer 'gather answer' judge 'gather judge' pair dpo evaluate 'gather evaluate'; do
  sky exec --cluster "$cluster" --env STEP="$step" "$here/skypilot.yaml"
done
sky down --yes "$cluster"
