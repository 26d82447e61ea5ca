# pretrain.sh: makes the `tiny` checkpoint that ships with the package again, from drawn scenes and random weights. The weights and the
# training's log go to pixellm/model/pretrained/tiny, everything else to .local/pretrain.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$LOCAL/cluster.sh"

OUTPUT=$ROOT/.local/pretrain
TARGET=$ROOT/pixellm/model/pretrained/tiny
NUM_STAGES=5

started=$EPOCHREALTIME
begin_run
lock_folder
reserve_ports
cd "$ROOT"
rm -rf "$OUTPUT"
mkdir -p "$OUTPUT/logs" "$TARGET"

stage "start the S3 store (SeaweedFS)" start_store "$OUTPUT/s3" "$OUTPUT/logs/store.log"
stage "start Ray" start_ray "$OUTPUT/logs/ray.log"
stage "draw scenes" job data jobs.prepare_data --config jobs/configs/prepare_shapes_naming.yaml
stage "train from random weights" job train jobs.train --config jobs/configs/pretrain_tiny_cpu.yaml
stage "export" job export jobs.export checkpoint=s3://pixellm/runs/tiny-naming output="$TARGET" dtype=bfloat16
progress_lines < "$OUTPUT/logs/train.log" | sed 's/^ *//' > "$TARGET/train.log"
say "wrote $TARGET in $(seconds_since "$started") s"
