# What the scripts of this folder share: a run owns one folder under /tmp, one block of ports and every process that it starts with
# `spawn`, and all of it is gone when the run ends in whatever way. Sourced, never executed. Needs bash and util-linux, nothing else.

set -euo pipefail

LOCAL=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$LOCAL/../.." && pwd)
VENV_BIN=$ROOT/.venv/bin
FIRST_PORT=61000  # above the ports that Linux hands out by itself (32768-60999)
LAST_PORT=65500
PORTS_PER_RUN=30

say() { printf '%s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# seconds_since START: with one decimal; START is a value of EPOCHREALTIME.
seconds_since() {
    local microseconds=$((${EPOCHREALTIME/[.,]/} - ${1/[.,]/}))
    printf '%d.%d' $((microseconds / 1000000)) $((microseconds / 100000 % 10))
}

# begin_run: makes RUN_DIR and sees to it that the run is taken down when this script ends: by a trap where bash can run one, by the
# guard (its own session, so no signal of the terminal or of the process group reaches it) where bash is killed outright.
begin_run() {
    RUN_DIR=$(mktemp -d /tmp/pixellm-XXXXXX)
    setsid bash "$LOCAL/guard.sh" "$RUN_DIR" $$ < /dev/null > /dev/null 2>&1 &
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'end_run $?' EXIT
    export PATH=$VENV_BIN:$PATH
    export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"
    export NO_PROXY=$no_proxy
}

end_run() {
    trap '' HUP INT TERM
    (($1 <= 128)) || say "stopping everything" 2> /dev/null || true
    stop_run "$RUN_DIR" 2> /dev/null  # hides bash's notes that its children were killed
    exit "$1"
}

# spawn COMMAND…: starts it in the background, in a session of its own, and sets SPAWNED to its process id. The kernel kills it when
# this script dies; what it starts in turn carries the run's mark in its environment, by which `run_processes` finds it.
spawn() {
    PIXELLM_RUN_DIR=$RUN_DIR setsid setpriv --pdeathsig KILL "$@" < /dev/null 8>&- 9>&- &
    SPAWNED=$!
}

# run_processes RUN_DIR: ids of the processes that carry the run's mark, or hold a file of its folder open (Ray renames some of its
# processes in a way that wipes their environment; all of those have their log open).
run_processes() {
    {
        grep -lzsFx "PIXELLM_RUN_DIR=$1" /proc/[0-9]*/environ || true
        find /proc/[0-9]*/fd -lname "$1/*" 2> /dev/null || true
    } | cut -d / -f 3 | sort -u
}

# stop_run RUN_DIR: ends all processes of the run and removes its folder. The store gets 2 s to close its files (killed, it loses nothing
# that it has acknowledged either); nothing else has anything to save. Processes that appear meanwhile are found by looking again.
stop_run() {
    local run_dir=$1 attempt pid port store_deadline=$((SECONDS + 2))
    local -a pids=()
    [[ -d $run_dir ]] || return 0
    for ((attempt = 0; attempt < 100; attempt++)); do
        mapfile -t pids < <(run_processes "$run_dir")
        ((${#pids[@]})) || break
        for pid in "${pids[@]}"; do
            if ((SECONDS < store_deadline)) && [[ $(cat "/proc/$pid/comm" 2> /dev/null) == weed ]]; then
                ((attempt)) || kill -TERM "$pid" 2> /dev/null || true
            else
                kill -KILL "$pid" 2> /dev/null || true
            fi
        done
        sleep 0.2
    done
    ((${#pids[@]} == 0)) || printf 'error: these processes would not end: %s\n' "${pids[*]}"
    if [[ -f $run_dir/base_port ]]; then
        for ((port = $(< "$run_dir/base_port"), attempt = 0; attempt < PORTS_PER_RUN; attempt++, port++)); do
            rm -f /tmp/seaweedfs-{master,volume,filer,s3,admin}-grpc-$port.sock  # the store's names for them are fixed
        done
    fi
    rm -rf "$run_dir"
}

# reserve_ports: sets BASE_PORT, the first of PORTS_PER_RUN ports that nobody uses, nor the ports 10000 below them (parts of the
# store find each other by that distance). A lock keeps two runs from choosing the same block; it is held by this script alone
# (descriptor 8), so it is free again when the script is gone.
reserve_ports() {
    local port hex
    for ((BASE_PORT = FIRST_PORT; BASE_PORT + PORTS_PER_RUN <= LAST_PORT; BASE_PORT += PORTS_PER_RUN)); do
        { exec 8>> "/tmp/pixellm-ports-$BASE_PORT.lock"; } 2> /dev/null || continue
        flock --nonblock 8 || continue
        hex=$(for ((port = BASE_PORT; port < BASE_PORT + PORTS_PER_RUN; port++)); do printf '%04X|%04X|' "$port" $((port - 10000)); done)
        if ! grep -qsE "^ *[0-9]+: [0-9A-F]+:(${hex%|}) " /proc/net/tcp /proc/net/tcp6; then
            echo "$BASE_PORT" > "$RUN_DIR/base_port"
            return 0
        fi
    done
    die "no block of $PORTS_PER_RUN free ports between $FIRST_PORT and $LAST_PORT"
}

# lock_folder: one run at a time works in this checkout's demo-output/ and .local/ (descriptor 9, held by this script alone).
lock_folder() {
    mkdir -p "$ROOT/.local"
    exec 9>> "$ROOT/.local/lock"
    flock --nonblock 9 || die "another 'make demo' or 'make serve' is running in $ROOT; stop it first"
}

# http_status PORT PATH [HEADER]: prints the status code of a GET on the loopback, nothing when nobody answers.
http_status() {
    local status=""
    {
        exec 3<> "/dev/tcp/127.0.0.1/$1" || return 0
        printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n%s\r\n' "$2" "${3:+$3$'\r\n'}" >&3
        read -r -t 5 _ status _ <&3 || true
        exec 3>&-
    } 2> /dev/null
    printf '%s' "${status%$'\r'}"
}

# wait_until WHAT PID LOG TIMEOUT_S COMMAND…: until COMMAND succeeds; stops with the end of LOG when process PID dies before that.
wait_until() {
    local what=$1 pid=$2 log=$3 deadline=$((SECONDS + $4))
    shift 4
    until "$@"; do
        if ! kill -0 "$pid" 2> /dev/null; then
            tail -n 20 "$log" >&2
            die "$what ended while starting; its output is above"
        fi
        ((SECONDS < deadline)) || { tail -n 20 "$log" >&2; die "$what did not start in time; its output is above"; }
        sleep 0.1
    done
}
