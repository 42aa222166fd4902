#!/bin/sh
# ruff and mypy with the interpreter given; one that is not installed is named and skipped.
set -eu
cd "$(dirname "$0")/.."
for tool in "ruff check ." "ruff format --check ." "mypy"; do
    name=${tool%% *}
    if "$1" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$name') is None)"; then
        "$1" -m $tool
    else
        echo "$name is not installed: not checked"
    fi
done
