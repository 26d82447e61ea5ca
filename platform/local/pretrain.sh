# pretrain.sh: makes the `tiny` checkpoint that ships with the package again, from drawn scenes and random weights. The weights and the
# training's log go to pixellm/model/pretrained/tiny, everything else to .local/pretrain.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$LOCAL/cluster.sh"

OUTPUT=$ROOT/.local/pretrain
TARGET=$ROOT/pixellm/model/pretrained/tiny
SHARDS=s3://pixellm/shards/shapes/naming
FIRST=s3://pixellm/models/tiny-naming
NUM_STAGES=8

started=$EPOCHREALTIME
begin_run
lock_folder
reserve_ports
cd "$ROOT"
rm -rf "$OUTPUT"
mkdir -p "$OUTPUT/logs" "$TARGET"

stage "start the S3 store (SeaweedFS)" start_store "$OUTPUT/s3" "$OUTPUT/logs/store.log"
stage "start Ray" start_ray "$OUTPUT/logs/ray.log"
stage "draw scenes of all colours" job data-naming jobs.prepare_data --config jobs/configs/prepare_shapes_naming.yaml
stage "draw scenes of two colours each" job data-two-colors jobs.prepare_data --config jobs/configs/prepare_shapes_naming.yaml \
    seed=4 colors_per_scene=2 output=$SHARDS-two-colors
stage "train from random weights" job train-naming jobs.train --config jobs/configs/pretrain_tiny_cpu.yaml
stage "export" job export-naming jobs.export checkpoint=s3://pixellm/runs/tiny-naming output=$FIRST dtype=bfloat16
stage "train on where a colour does not tell the object" job train-shapes jobs.train --config jobs/configs/pretrain_tiny_cpu.yaml \
    run=tiny-shapes model=$FIRST data="[{uri: '$SHARDS', weight: 0.4}, '$SHARDS-two-colors']" steps=1100
stage "export" job export-shapes jobs.export checkpoint=s3://pixellm/runs/tiny-shapes output="$TARGET" dtype=bfloat16
cat "$OUTPUT"/logs/train-{naming,shapes}.log | progress_lines | sed 's/^ *//' > "$TARGET/train.log"
say "wrote $TARGET in $(seconds_since "$started") s"
