#!/bin/sh
# Prints the path of the interpreter every target uses, making one first where there is none; names it and its torch on
# stderr. Called as: sh .ci/interpreter.sh core|test|oldest
# In this order: PYTHON=; the ambient python3 where it has torch and all that is needed; a .venv on top of an ambient
# torch, with what is missing or too old; a .venv from requirements.txt. "oldest" is a .venv-oldest of its own, always.
set -eu
cd "$(dirname "$0")/.."

core="torch mpmath pandas numpy matplotlib typer rich"
need=${1:-core}
case "$need" in
    core) modules=$core ;;
    test | oldest) modules="$core pytest hypothesis pytest_benchmark" ;;
    *) echo "kl-audit: $need is not one of core, test, oldest" >&2 && exit 2 ;;
esac
venv=.venv
[ "$need" != oldest ] || venv=.venv-oldest

fail() { echo "kl-audit: $*" >&2; exit 2; }

# One start of an interpreter tells all: sets path, version, torch (its version) and lacks (the modules it has not, or
# older than pyproject.toml has them). Written for any Python, so that an old one can say so. Asking torch itself would
# take a second.
probe() {
    facts=$("$1" - $modules 2>/dev/null <<'PY'
import sys
version = ".".join(map(str, sys.version_info[:3]))
if sys.version_info < (3, 10):
    sys.stdout.write("is Python %s" % version)
    sys.exit(1)
import os, re
from importlib.metadata import PackageNotFoundError, version as version_of
from importlib.util import find_spec
specs = {name: find_spec(name) for name in sys.argv[1:]}
found = [name for name in specs if specs[name] and specs[name].origin]  # what an uninstall leaves behind has no origin
torch = "none"
if "torch" in found:
    with open(os.path.join(os.path.dirname(specs["torch"].origin), "version.py")) as file:
        torch = re.search("^__version__ = ['\"](.+?)['\"]", file.read(), re.M).group(1)
def release(text):
    return tuple(map(int, re.match(r"[\d.]+", text).group().strip(".").split(".")))
with open("pyproject.toml") as file:
    floors = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', file.read()))
for name in list(found):
    package = name.replace("_", "-")
    try:
        present = torch if name == "torch" else version_of(package)
    except PackageNotFoundError:
        continue
    if present and release(present) < release(floors[package]):
        found.remove(name)
lacks = " ".join(name for name in specs if name not in found)
sys.stdout.write("\n".join(["interpreter", sys.executable, version, torch, lacks, ""]))
PY
    ) || case $facts in
        "is Python "*) fail "$1 $facts: Python 3.10 or later is needed; PYTHON= names another interpreter" ;;
        *) facts= ;;
    esac
    { read -r what && read -r path && read -r version && read -r torch && read -r lacks || :; } <<FACTS
$facts
FACTS
    [ "$what" = interpreter ] || fail "$1 does not run Python: Python 3.10 or later is needed; PYTHON= names an interpreter"
}

answer() {
    echo "kl-audit: $1, torch $torch" >&2
    echo "$1"
    exit
}

if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a command"
    probe "$PYTHON"
    if [ "$need" != oldest ]; then
        [ -z "$lacks" ] || fail "PYTHON=$PYTHON lacks $lacks, or has them older than pyproject.toml asks: install them there, or leave PYTHON out"
        answer "$path"
    fi
    ambient=$PYTHON
else
    # An activated .venv of ours is not the ambient interpreter: it must not be rebuilt from itself.
    case "${VIRTUAL_ENV:-}" in "$PWD/.venv" | "$PWD/.venv-oldest") PATH=${PATH#"$VIRTUAL_ENV/bin:"} ;; esac
    ambient=$(command -v python3) || fail "no python3 on the PATH: install Python 3.10 or later, or name one with PYTHON="
    probe "$ambient"
    [ -n "$lacks" ] || [ "$need" = oldest ] || answer "$path"
fi
case " $lacks " in
    *" torch "*) [ "$torch" = none ] || fail "$path has torch $torch, which is older than the audit needs and is never replaced: PYTHON= names another interpreter" ;;
esac

if [ "$need" = oldest ]; then contents=oldest; elif [ "$torch" = none ]; then contents=lock; else contents=$need; fi
python=$PWD/$venv/bin/python
origin="$path $version torch $torch"
checksum=$(cat pyproject.toml requirements.txt requirements-oldest.txt .ci/interpreter.sh | cksum)
recorded() { [ -f "$1" ] && read -r line <"$1" && [ "$line" = "$2" ]; }

made=no
! [ -x "$python" ] || ! recorded "$venv/origin" "$origin" || made=yes
if [ $made = yes ] && recorded "$venv/stamp.$contents" "$checksum"; then
    probe "$python"
    [ -n "$lacks" ] || answer "$python"
fi

missing=$lacks
[ $contents != oldest ] || missing="the oldest packages"
echo "kl-audit: setting up $venv with $path, which lacks $missing" >&2
ambient_torch=$torch
if [ $made = no ]; then
    "$ambient" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$path has no venv or ensurepip module: install them (on Debian: apt install python3-venv), or name another with PYTHON="
    flags=--clear in_venv=no
    if [ "$torch" != none ]; then
        "$ambient" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' && in_venv=yes || flags="--clear --system-site-packages"
    fi
    "$ambient" -m venv $flags $venv >&2 || fail "$path could not make $venv: see above"
    # Made from inside a virtual environment, system site packages would be the base interpreter's, not the ambient's.
    [ $in_venv = no ] || "$ambient" -c 'import site
for folder in site.getsitepackages() + [site.getusersitepackages()] * bool(site.ENABLE_USER_SITE):
    print("import site; site.addsitedir(%r)" % folder)' >"$("$python" -c 'import site; print(site.getsitepackages()[0])')/ambient.pth"
    echo "$origin" >$venv/origin
fi

locked() { grep "^$(echo "$1" | tr _ -)==" requirements.txt; }
case $contents in
    lock) set -- --requirement requirements.txt ;;
    oldest)
        set -- --requirement requirements-oldest.txt
        [ "$torch" != none ] || set -- "$@" "$(locked torch)"
        ;;
    *)
        # What the ambient interpreter has stays at its version, torch first of all; what joins it is the lock's, or as
        # much older as fits beside it.
        "$ambient" - $modules >$venv/constraints.txt <<PY
import re, sys
from importlib.metadata import distribution, distributions
present = {d.metadata["Name"].lower().replace("_", "-") for d in distributions()}
with open("pyproject.toml") as file:
    floors = dict(re.findall('"([a-z-]+)(>=[0-9.]+)"', file.read()))
for module in sys.argv[1:]:
    name = module.replace("_", "-")
    if module in "$lacks".split():
        print(name + floors[name])
    elif name in present:
        print(name + "==" + distribution(name).version)
PY
        for module in $lacks; do locked "$module"; done | sed 's/==/<=/' >$venv/requirements.txt
        set -- --constraint $venv/constraints.txt --requirement $venv/requirements.txt
        ;;
esac
# No retries: without a network the answer comes at once. PIP_RETRIES still has its say.
"$python" -m pip install --quiet --no-input --disable-pip-version-check --retries "${PIP_RETRIES:-0}" --timeout 10 "$@" \
    >$venv/pip.log 2>&1 ||
    fail "pip could not install $missing ($venv/pip.log says why): connect to a package index, or name an interpreter that has them with PYTHON="
probe "$python"
[ -z "$lacks" ] || fail "$venv still lacks $lacks: see $venv/pip.log"
[ "$ambient_torch" = none ] || [ "$torch" = "$ambient_torch" ] ||
    fail "$venv has torch $torch over the ambient $ambient_torch: remove $venv, or name an interpreter with PYTHON="
echo "$checksum" >"$venv/stamp.$contents"
answer "$python"
