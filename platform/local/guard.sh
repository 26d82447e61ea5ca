# guard.sh RUN_DIR PID: waits until process PID, its parent, is gone, then takes down what is left of the run (see lib.sh).
# When a parent dies its children get another one at once, also while it is still an unreaped zombie.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parent_id() {
    local stat
    read -r stat < "/proc/$$/stat"
    stat=${stat##*) }  # what follows the process name: state, parent, …
    cut -d ' ' -f 2 <<< "$stat"
}

while [[ $(parent_id) == "$2" ]]; do
    sleep 1
done
stop_run "$1"
