# demo.sh: the main job on this machine, from annotations to a served mask. Every step after the cluster's start is a job submitted
# to Ray, as on any cluster. Results and logs land in demo-output/; the store's data stays in .local/s3, for `make serve`.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$LOCAL/cluster.sh"

OUTPUT=$ROOT/demo-output
SHARDS=s3://pixellm/shards/shapes
RUN=s3://pixellm/runs/shapes
MODEL=s3://pixellm/models/tiny
REPORTS=s3://pixellm/reports
NUM_STAGES=10

# figures NAME: gIoU and cIoU of demo-output/NAME/report.json.
figures() {
    python -c 'import json, sys; every = json.load(open(sys.argv[1]))["metrics"]["all"]
print("gIoU {giou:.3f}   cIoU {ciou:.3f}".format(**every))' "$OUTPUT/$1/report.json"
}

started=$EPOCHREALTIME
begin_run
lock_folder
reserve_ports
cd "$ROOT"
rm -rf "$OUTPUT" "$ROOT/.local/s3"
mkdir -p "$OUTPUT/logs"

say "the demo: store, Ray, data, training, evaluation and serving on this machine; logs in demo-output/logs"
stage "start the S3 store (SeaweedFS)" start_store "$ROOT/.local/s3" "$OUTPUT/logs/store.log"
stage "start Ray" start_ray "$OUTPUT/logs/ray.log"
say "        dashboard $RAY_API, token $RAY_AUTH_TOKEN"
stage "draw scenes to train on" job data-train jobs.prepare_data --config jobs/configs/prepare_shapes_train.yaml output=$SHARDS/train
stage "draw held-out scenes" job data-val jobs.prepare_data --config jobs/configs/prepare_shapes_val.yaml output=$SHARDS/val
stage "evaluate the model that ships, on the held-out scenes" \
    job evaluate-before jobs.evaluate shards=$SHARDS/val model=tiny output=$REPORTS/before local_copy="$OUTPUT/before"
stage "train it (2 workers, DeepSpeed ZeRO-2)" job train jobs.train --config jobs/configs/train_tiny_cpu.yaml
stage "export the trained model" job export jobs.export checkpoint=$RUN output=$MODEL
stage "evaluate the trained model, on the same scenes" \
    job evaluate-after jobs.evaluate shards=$SHARDS/val model=$MODEL output=$REPORTS/after local_copy="$OUTPUT/after"
stage "deploy it with Ray Serve" job deploy jobs.deploy --config serve/configs/tiny.yaml model=$MODEL port="$SERVE_PORT"
stage "ask the server a question" \
    job ask jobs.ask url="http://127.0.0.1:$SERVE_PORT" shards=$SHARDS/val output="$OUTPUT/answer.png"
python -c 'import sys; from pixellm.storage import download_folder; download_folder(*sys.argv[1:])' $RUN/tensorboard "$OUTPUT/tensorboard"

before=$(figures before)
after=$(figures after)
say "
On held-out scenes, by free generation:
  before the training   $before
  after the training    $after

  demo-output/after/report.html    photos, questions, answers, predicted and true masks (demo-output/before: the same before)
  demo-output/answer.png           the served model's answer to one question

To look further:
  make serve                                              serve the trained model, with a page to ask it
  .venv/bin/tensorboard --logdir demo-output/tensorboard  losses and speed of the training

The demo took $(seconds_since "$started") s."
