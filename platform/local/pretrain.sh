# pretrain.sh: makes the `tiny` checkpoint that ships with the package again, from drawn scenes and random weights. The weights and the
# training's log go to pixellm/model/pretrained/tiny, everything else to .local/pretrain.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$LOCAL/cluster.sh"

OUTPUT=$ROOT/.local/pretrain
TARGET=$ROOT/pixellm/model/pretrained/tiny
SHARDS=s3://pixellm/shards/shapes
NUM_STAGES=12

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
    seed=4 colors_per_scene=2 output=$SHARDS/naming-two-colors
stage "draw scenes with reasoning questions" job data-reasoning jobs.prepare_data --config jobs/configs/prepare_shapes_naming.yaml \
    seed=6 questions=reasoning output=$SHARDS/reasoning
stage "draw more scenes with reasoning questions" job data-reasoning-more jobs.prepare_data \
    --config jobs/configs/prepare_shapes_naming.yaml seed=8 questions=reasoning num_scenes=18000 output=$SHARDS/reasoning-more
stage "train tower and mask head from random weights" job tower jobs.pretrain_tower --config jobs/configs/pretrain_tower_cpu.yaml
stage "train the language model to answer in words" job text jobs.train --config jobs/configs/train_tiny_text_cpu.yaml
stage "train it further" job text-further jobs.train --config jobs/configs/train_tiny_text_cpu.yaml steps=6000
stage "export" job export jobs.export checkpoint=s3://pixellm/runs/tiny-text output=s3://pixellm/models/tiny-text dtype=bfloat16
stage "train it on the other scenes" job text-more jobs.train --config jobs/configs/train_tiny_text_cpu.yaml run=tiny-text-more steps=6000 \
    model=s3://pixellm/models/tiny-text "data=[$SHARDS/naming, $SHARDS/naming-two-colors, $SHARDS/reasoning-more]" \
    "learning_rates={projector: 1.0e-3, language_model: 1.0e-3, codebook: 1.0e-3}"
stage "export" job export-more jobs.export checkpoint=s3://pixellm/runs/tiny-text-more output="$TARGET" dtype=bfloat16
cat "$OUTPUT"/logs/{tower,text,text-further,text-more}.log | progress_lines | sed 's/^ *//' > "$TARGET/train.log"
say "wrote $TARGET in $(seconds_since "$started") s"
