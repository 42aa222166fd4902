#!/bin/sh
# The report in Chromium and its tables in other readers, with the interpreter given.
set -eu
cd "$(dirname "$0")/.."
sh .ci/chromium.sh
missing=$("$1" -c "from importlib.util import find_spec as f; print(*(m for m in ('selenium', 'polars', 'duckdb') if not f(m)))")
if [ -n "$missing" ]; then
    case $1 in
        "$PWD"/.venv/*) "$1" -m pip install --quiet --disable-pip-version-check --requirement .ci/browser.txt ;;
        *) echo "kl-audit: $1 lacks $missing: install them there, or leave PYTHON out" >&2 && exit 2 ;;
    esac
fi
"$1" -m pytest -m browser tests/publish/test_browser.py
"$1" -m pytest tests/publish/test_dictionary.py
