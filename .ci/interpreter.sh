#!/bin/sh
# Prints the interpreter every target uses, making one first where there is none. See the README, "The interpreter".
#   sh .ci/interpreter.sh core|test
# Order: PYTHON=; the ambient python3 if it has all that is needed; the ambient torch, left as it is, with the missing
# packages in a .venv beside it; a .venv from requirements.txt.
set -eu
cd "$(dirname "$0")/.."

core="torch mpmath pandas numpy matplotlib typer rich"
case "${1:-core}" in
    test) needed="$core pytest hypothesis pytest_benchmark" ;;
    *) needed="$core" ;;
esac

fail() { echo "kl-audit: $*" >&2; exit 2; }

missing() { # interpreter, modules: those it does not have
    "$1" - $2 <<'PY'
import importlib.util, sys
print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])
PY
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a command"
    new_enough "$PYTHON" || fail "PYTHON=$PYTHON is older than Python 3.10"
    absent=$(missing "$PYTHON" "$needed")
    [ -z "$absent" ] || fail "PYTHON=$PYTHON lacks $absent: install them there, or leave PYTHON out"
    command -v "$PYTHON"
    exit
fi

ambient=$(command -v python3 || command -v python) || fail "no python3 on the PATH: install Python 3.10 or later"
new_enough "$ambient" || fail "$ambient is older than Python 3.10: install a newer one, or name it with PYTHON="
absent=$(missing "$ambient" "$needed")
if [ -z "$absent" ]; then
    echo "$ambient"
    exit
fi

case " $absent " in
    *" torch "*) beside=no ;;
    *) beside=yes ;;
esac
stamp="$(cat pyproject.toml requirements.txt "$0" | cksum) $ambient $beside"
if [ -x .venv/bin/python ] && [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ] &&
    [ -z "$(missing .venv/bin/python "$needed")" ]; then
    echo "$PWD/.venv/bin/python"
    exit
fi

[ -z "$("$ambient" -c 'import venv, ensurepip' 2>&1)" ] ||
    fail "$ambient cannot make a virtual environment: install its venv module (on Debian: python3-venv)"
echo "kl-audit: setting up .venv (missing: $absent)" >&2
"$ambient" -m venv --clear .venv
python=.venv/bin/python
install() { # no retries: without a network the answer comes at once
    $python -m pip install --quiet --disable-pip-version-check --retries 0 --timeout 15 "$@" >&2 ||
        fail "pip could not install what is missing ($absent): connect to a package index, or name an interpreter that has it with PYTHON="
}
if [ $beside = yes ]; then
    # Where the ambient interpreter is itself a virtual environment, system site packages would not be its own.
    "$ambient" -c 'import site, sys; print(*dict.fromkeys(site.getsitepackages() + [site.getusersitepackages()]), sep="\n")' \
        >"$($python -c 'import site; print(site.getsitepackages()[0])')/ambient.pth"
    torch=$("$ambient" -c 'from importlib.metadata import version; print(version("torch"))')
    echo "torch==$torch" >.venv/constraints.txt
    grep -v '^torch==' requirements.txt | while IFS= read -r line; do
        module=$(echo "$line" | sed 's/[=<> ].*//; s/-/_/g')
        case " $absent " in *" $module "*) echo "$line" ;; esac
    done >.venv/wanted.txt
    install --constraint .venv/constraints.txt --requirement .venv/wanted.txt
else
    install --requirement requirements.txt
fi
echo "$stamp" >.venv/stamp
echo "$PWD/.venv/bin/python"
