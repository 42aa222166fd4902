#!/bin/sh
# Prints the path of the interpreter every target uses, making one first where there is none; names it and its torch on
# stderr. Called as: sh .ci/interpreter.sh core|test
# In this order: PYTHON=; the ambient python3 where it has torch and all that is needed; a .venv on top of an ambient
# torch, with what is missing; a .venv from requirements.txt.
set -eu
cd "$(dirname "$0")/.."

core="torch mpmath pandas numpy matplotlib typer rich"
need=${1:-core}
case "$need" in
    core) modules=$core ;;
    test) modules="$core pytest hypothesis pytest_benchmark" ;;
    *) echo "kl-audit: $need is not one of core, test" >&2 && exit 2 ;;
esac

fail() { echo "kl-audit: $*" >&2; exit 2; }

# One start of an interpreter tells all: sets path, version, torch (its version) and lacks (the modules it has not).
# Written for any Python, so that an old one can say so. Asking torch itself would take a second.
probe() {
    facts=$("$1" - $modules 2>/dev/null <<'PY'
import sys
version = ".".join(map(str, sys.version_info[:3]))
if sys.version_info < (3, 10):
    sys.exit(sys.stdout.write("is Python %s" % version) and 1)
import os, re
from importlib.util import find_spec
specs = {name: find_spec(name) for name in sys.argv[1:]}
found = [name for name in specs if specs[name] and specs[name].origin]  # what an uninstall leaves behind has no origin
torch = "none"
if "torch" in found:
    with open(os.path.join(os.path.dirname(specs["torch"].origin), "version.py")) as file:
        torch = re.search("^__version__ = ['\"](.+?)['\"]", file.read(), re.M).group(1)
print(sys.executable, version, torch, " ".join(name for name in specs if name not in found), sep="\n")
PY
    ) || fail "$1 ${facts:-does not run}: Python 3.10 or later is needed; PYTHON= names another interpreter"
    { read -r path; read -r version; read -r torch; read -r lacks || :; } <<FACTS
$facts
FACTS
}

answer() {
    echo "kl-audit: $1, torch $torch" >&2
    echo "$1"
    exit
}

if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a command"
    probe "$PYTHON"
    [ -z "$lacks" ] || fail "PYTHON=$PYTHON lacks $lacks: install them there, or leave PYTHON out"
    answer "$path"
fi

# An activated .venv of ours is not the ambient interpreter: it must not be rebuilt from itself.
[ "${VIRTUAL_ENV:-}" != "$PWD/.venv" ] || PATH=${PATH#"$VIRTUAL_ENV/bin:"}
ambient=$(command -v python3) || fail "no python3 on the PATH: install Python 3.10 or later, or name one with PYTHON="
probe "$ambient"
[ -n "$lacks" ] || answer "$path"

if [ "$torch" = none ]; then contents=lock; else contents=$need; fi
python=$PWD/.venv/bin/python
origin="$path $version torch $torch"
checksum=$(cat pyproject.toml requirements.txt .ci/interpreter.sh | cksum)
recorded() { [ -f "$1" ] && read -r line <"$1" && [ "$line" = "$2" ]; }

made=no
! [ -x "$python" ] || ! recorded .venv/origin "$origin" || made=yes
if [ $made = yes ] && recorded ".venv/stamp.$contents" "$checksum"; then
    probe "$python"
    [ -n "$lacks" ] || answer "$python"
fi

echo "kl-audit: setting up .venv with $path, which lacks $lacks" >&2
missing=$lacks ambient_torch=$torch
if [ $made = no ]; then
    "$ambient" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$path has no venv or ensurepip module: install them (on Debian: apt install python3-venv), or name another with PYTHON="
    flags=--clear in_venv=no
    if [ $contents != lock ]; then
        "$ambient" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' && in_venv=yes || flags="--clear --system-site-packages"
    fi
    "$ambient" -m venv $flags .venv >&2 || fail "$path could not make .venv: see above"
    # Made from inside a virtual environment, system site packages would be the base interpreter's, not the ambient's.
    [ $in_venv = no ] || "$ambient" -c 'import site
for folder in site.getsitepackages() + [site.getusersitepackages()] * bool(site.ENABLE_USER_SITE):
    print("import site; site.addsitedir(%r)" % folder)' >"$("$python" -c 'import site; print(site.getsitepackages()[0])')/ambient.pth"
    echo "$origin" >.venv/origin
fi

if [ $contents = lock ]; then
    set -- --requirement requirements.txt
else
    # What the ambient interpreter has stays at its version, torch first of all.
    "$ambient" - $modules >.venv/constraints.txt <<'PY'
import sys
from importlib.metadata import distribution, distributions
present = {d.metadata["Name"].lower().replace("_", "-") for d in distributions()}
for name in (module.replace("_", "-") for module in sys.argv[1:]):
    if name in present:
        print(name + "==" + distribution(name).version)
PY
    for module in $missing; do
        grep "^$(echo "$module" | tr _ -)==" requirements.txt
    done >.venv/requirements.txt
    set -- --constraint .venv/constraints.txt --requirement .venv/requirements.txt
fi
# No retries: without a network the answer comes at once. PIP_RETRIES still has its say.
"$python" -m pip install --quiet --no-input --disable-pip-version-check --retries "${PIP_RETRIES:-0}" --timeout 10 "$@" \
    >.venv/pip.log 2>&1 ||
    fail "pip could not install $missing (.venv/pip.log says why): connect to a package index, or name an interpreter that has them with PYTHON="
probe "$python"
[ -z "$lacks" ] || fail ".venv still lacks $lacks: see .venv/pip.log"
[ "$ambient_torch" = none ] || [ "$torch" = "$ambient_torch" ] ||
    fail ".venv has torch $torch over the ambient $ambient_torch: remove .venv, or name an interpreter with PYTHON="
echo "$checksum" >".venv/stamp.$contents"
answer "$python"
