# with_store.sh COMMAND…: runs the command beside an S3 store of its own, whose address and keys are in the environment; bucket `pixellm`.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$LOCAL/cluster.sh"

begin_run
reserve_ports
cd "$ROOT"
start_store "$RUN_DIR/s3" "$RUN_DIR/store.log"
"$@"
