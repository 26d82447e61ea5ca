# serve.sh: serves the model that the demo trained, until Ctrl-C.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$LOCAL/cluster.sh"

LOGS=$ROOT/.local/logs

begin_run
lock_folder
[[ -d $ROOT/.local/s3 ]] || die "there is no trained model here yet; run 'make demo' first"
reserve_ports
cd "$ROOT"
mkdir -p "$LOGS"

say "starting the S3 store and Ray; logs in .local/logs"
start_store "$ROOT/.local/s3" "$LOGS/store.log"
start_ray "$LOGS/ray.log"
if ! run_job "$LOGS/deploy.log" python -m jobs.deploy --config serve/configs/tiny.yaml port="$SERVE_PORT"; then
    tail -n 30 "$LOGS/deploy.log" >&2
    die "the model could not be deployed (has 'make demo' run to its end?); the whole output is in $LOGS/deploy.log"
fi
say "
serving: a page at http://127.0.0.1:$SERVE_PORT/ and an API that http://127.0.0.1:$SERVE_PORT/docs describes
  curl -F image=@photo.jpg -F question='Which of these can roll?' http://127.0.0.1:$SERVE_PORT/v1/segment
Ray's dashboard: $RAY_API, token $RAY_AUTH_TOKEN
Ctrl-C stops everything."
wait -n "$STORE_PID" "$RAY_PID" || true
die "the store or Ray has ended by itself; see $LOGS"
