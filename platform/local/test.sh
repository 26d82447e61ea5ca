# test.sh [pytest arguments]: the tests, as a run (see lib.sh), so that no store and no Ray that a test started outlives them.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

started=$EPOCHREALTIME
begin_run
cd "$ROOT"
say "running the tests: pytest $*"
status=0
TMPDIR=$RUN_DIR spawn pytest "$@"
wait "$SPAWNED" || status=$?
say "tests $( ((status)) && echo FAILED || echo passed) in $(seconds_since "$started") s"
exit "$status"
