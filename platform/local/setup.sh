# setup.sh PYTHON STAMP: creates .venv with PYTHON and installs the project into it at the versions of constraints.txt, checked by
# the hashes of platform/requirements.lock, then writes
# STAMP. Needs Python 3.11 or newer with pip. Where python3 comes without ensurepip (Debian), its own pip fills .venv.

set -euo pipefail
python=$1 stamp=$2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# pip is a child that must not outlive this script.
run() { setpriv --pdeathsig TERM "$@"; }

if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
    command -v "$python" > /dev/null || fail "$python is not installed; on Debian: apt-get install python3 python3-pip"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version) is too old, 3.11 or newer is needed; name another one with: make setup PYTHON=/path/to/python3"
    echo "creating .venv with $("$python" --version)"
    if "$python" -c 'import ensurepip' 2> /dev/null; then
        run "$python" -m venv --clear .venv
    else
        "$python" -m pip --version > /dev/null 2>&1 ||
            fail "$python has neither ensurepip nor pip; on Debian: apt-get install python3-pip, or python3-venv"
        run "$python" -m venv --clear --without-pip .venv
        run "$python" -m pip --python .venv/bin/python install --quiet --disable-pip-version-check pip
    fi
fi

echo "installing the project with its pinned dependencies into .venv (2 GB and a few minutes the first time)"
export PYTHONWARNINGS=ignore::UserWarning  # setuptools has a page of them for an editable installation
# First by hash: a file that is not one of platform/requirements.lock is refused. That leaves torch and the project itself to the second call.
run .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r platform/requirements.lock
run .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,serve,data,dev]'
touch "$stamp"
echo "set-up done in $SECONDS s"
