# test.sh [pytest arguments]: the tests, as a run (see lib.sh), so that no store and no Ray that a test started outlives them.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The tests of the page drive a real browser. Where it is missing and cannot be installed, they skip and say so.
install_chromium() {
    if command -v chromium chromium-browser google-chrome > /dev/null || ! command -v apt-get > /dev/null || ((EUID != 0)); then
        return
    fi
    say "installing Debian's chromium for the tests of the page"
    { apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core; } > "$RUN_DIR/chromium.log" 2>&1 \
        || say "chromium cannot be installed: $(tail -n 1 "$RUN_DIR/chromium.log")"
}

started=$EPOCHREALTIME
begin_run
cd "$ROOT"
install_chromium
say "running the tests: pytest $*"
status=0
TMPDIR=$RUN_DIR spawn pytest "$@"
wait "$SPAWNED" || status=$?
say "tests $( ((status)) && echo FAILED || echo passed) in $(seconds_since "$started") s"
exit "$status"
