#!/bin/sh
# Chromium and its driver: found, or installed from Debian's packages where we are root; else exit status 2 and what to do.
set -eu
there() { command -v chromium >/dev/null && command -v chromedriver >/dev/null; }
if ! there && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "kl-audit: installing chromium and chromium-driver" >&2
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 || :
fi
there || { echo "kl-audit: chromium and chromedriver are not on the PATH (on Debian: apt install chromium chromium-driver)" >&2; exit 2; }
