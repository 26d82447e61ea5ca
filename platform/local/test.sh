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
if ((status)); then
    # A test removes its Ray's logs when it ends: those that lie here are of one during which pytest died.
    mapfile -t logs < <(find "$RUN_DIR" -path '*/session_2*/logs/*' \( -name '*.err' -o -name '*core-driver*' -o -name 'raylet.out' \) -size +0 | sort -r)
    ((${#logs[@]} == 0)) || tail -n 20 "${logs[@]}" | cut -c 1-400
    say "tests FAILED in $(seconds_since "$started") s: pytest ended with $status"
else
    say "tests passed in $(seconds_since "$started") s"
fi
exit "$status"
