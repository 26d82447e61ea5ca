# One machine's cluster: an S3 store (SeaweedFS) and a Ray head with its dashboard and job server, all reached over the loopback.
# Sourced after lib.sh, inside a run. Ports are counted from the run's BASE_PORT.

# start_store DATA_DIR LOG: a real S3 store over DATA_DIR with the bucket `pixellm`; exports the environment that S3 clients read.
# The keys live as long as the run; the data stays. Every listener that `weed mini` has is moved into the run's ports or switched off.
start_store() {
    local data_dir=$1 log=$2 port=$BASE_PORT
    unset AWS_PROFILE AWS_SESSION_TOKEN
    AWS_ACCESS_KEY_ID=local-$(random_hex 8)
    AWS_SECRET_ACCESS_KEY=$(random_hex 20)
    AWS_REGION=us-east-1
    AWS_ENDPOINT_URL=http://127.0.0.1:$port
    export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION AWS_ENDPOINT_URL
    mkdir -p "$data_dir"
    spawn weed mini -dir="$data_dir" -bucket=pixellm -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false \
        -master.resumeState=false -webdav=false -admin.ui=false -s3.port.iceberg=0 -s3.port.lance=0 \
        -s3.port=$port -s3.port.grpc=$((port + 1)) -master.port=$((port + 2)) -master.port.grpc=$((port + 3)) \
        -volume.port=$((port + 4)) -volume.port.grpc=$((port + 5)) -filer.port=$((port + 6)) -filer.port.grpc=$((port + 7)) \
        -admin.port=$((port + 8 - 10000)) -admin.port.grpc=$((port + 8)) \
        -filer.localSocket="$RUN_DIR/filer.sock" -s3.localSocket="$RUN_DIR/s3.sock" > "$log" 2>&1
    STORE_PID=$SPAWNED
    wait_until "the S3 store" "$STORE_PID" "$log" 60 grep -qs "Press Ctrl+C to stop" "$log"
}

# start_ray LOG: a Ray head whose cluster needs a token. It gets more CPUs than the machine has, so that the workers of a training
# leave Ray Data and the job's own process their share. Sets RAY_API (job server and dashboard) and SERVE_PORT (free for Ray Serve).
start_ray() {
    local log=$1 port=$((BASE_PORT + 10)) cores
    cores=$(nproc)
    RAY_API=http://127.0.0.1:$port
    SERVE_PORT=$((BASE_PORT + 20))
    PIXELLM_GIT_REVISION=$(git -C "$ROOT" describe --always --dirty --abbrev=40 --exclude='*' 2> /dev/null || true)  # a job's copy of the tree has no .git
    export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1 PIXELLM_GIT_REVISION
    unset RAY_ADDRESS
    export RAY_API_SERVER_ADDRESS=$RAY_API  # without it, parts of Ray Train look for a cluster and stumble over a second one
    RAY_AUTH_TOKEN=$(random_hex 20)
    export RAY_AUTH_TOKEN AUTOSCALER_METRIC_PORT=$((port + 1)) DASHBOARD_METRIC_PORT=$((port + 2))
    spawn ray start --head --block --disable-usage-stats --log-style=record --log-color=false --temp-dir="$RUN_DIR/ray" \
        --node-ip-address=127.0.0.1 --num-cpus=$((cores < 4 ? 8 : 2 * cores)) --object-store-memory=700000000 \
        --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port=$port --metrics-export-port=$((port + 3)) \
        --dashboard-agent-listen-port=$((port + 4)) --dashboard-agent-grpc-port=$((port + 5)) \
        --runtime-env-agent-port=$((port + 6)) --node-manager-port=$((port + 7)) --object-manager-port=$((port + 8)) \
        --port=$((port + 9)) --ray-client-server-port=$((port + 11)) > "$log" 2>&1
    RAY_PID=$SPAWNED
    wait_until "Ray" "$RAY_PID" "$log" 180 ray_is_up "$log"
}

# ray_is_up LOG: `ray start` has seen all of its processes start, and the job server answers.
ray_is_up() {
    grep -qs "Ray runtime started" "$1" || return 1
    [[ $(http_status "${RAY_API##*:}" /api/jobs/ "Authorization: Bearer $RAY_AUTH_TOKEN") == 200 ]]
}

# run_job LOG COMMAND…: submits COMMAND to the job server and waits for it. The job's output goes to LOG; the lines of it that tell
# progress go to the console too. Returns the job's status.
run_job() {
    local log=$1 status=0 submit follower
    shift
    spawn ray job submit --address "$RAY_API" --log-style=record --log-color=false --working-dir "$ROOT" -- "$@" > "$log" 2>&1
    submit=$SPAWNED
    tail -n +1 -s 0.2 -f --pid="$submit" "$log" 2> /dev/null | progress_lines &
    follower=$!
    wait "$submit" || status=$?
    wait "$follower" || true
    return "$status"
}

# stage TITLE COMMAND…: one of NUM_STAGES steps, with its time.
stage_number=0
stage() {
    local title=$1 stage_started=$EPOCHREALTIME
    shift
    stage_number=$((stage_number + 1))
    say "[$stage_number/$NUM_STAGES] $title"
    "$@"
    say "        done in $(seconds_since "$stage_started") s"
}

# job NAME MODULE arguments…: a job on the cluster, with its whole output in OUTPUT/logs/NAME.log.
job() {
    local log=$OUTPUT/logs/$1.log module=$2
    shift 2
    if ! run_job "$log" python -m "$module" "$@"; then
        tail -n 30 "$log" >&2
        die "$module failed; its whole output is in $log"
    fi
}

# progress_lines: of a job's output the lines that tell how far it is, without the name of the process that Ray puts before them, and
# once where they come twice in a row (Ray Train passes on what a worker prints through two of its logs).
progress_lines() {
    sed -u -nE \
        -e 's/\x1b\[[0-9;]*m//g; s/^\([A-Za-z:_]+ pid=[0-9]+(, ip=[^)]*)?\) //' \
        -e '/^(step [0-9]|warm start|checkpoint |resuming |run |waiting |set aside |error:)/b show' \
        -e '/^(prepare |evaluate: |exported |serving |question |answer |  (rows|questions|targets|rejected rows) )/b show' \
        -e 'd' \
        -e ':show' -e 's/^ +//; G; /^(.*)\n\1$/d; s/\n.*//; h; s/^/        /p'
}

random_hex() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
