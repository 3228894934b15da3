#!/bin/sh
# Installs runsc (gVisor) with systrap on Debian 12, whose own runsc is of 2022 and knows ptrace only.
# Adds the backports suite for this one installation: its archive, options and key are those of this machine's own apt
# sources, in a temporary file that is gone afterwards. Needs root. Does nothing if a new enough runsc is there.
set -eu

wanted=20240101
have() {
    command -v runsc >/dev/null 2>&1 || return 1
    dated=$(runsc --version 2>/dev/null | sed -n 's/.*release-\([0-9]\{8\}\).*/\1/p; s/.*0~*\.*\([0-9]\{8\}\).*/\1/p' | head -n 1)
    [ -n "$dated" ] || dated=$(dpkg-query -W -f '${Version}' runsc 2>/dev/null | sed -n 's/.*\([0-9]\{8\}\).*/\1/p')
    [ -n "$dated" ] && [ "$dated" -ge "$wanted" ]
}
have && { echo "runsc is there: $(command -v runsc)"; exit 0; }

. /etc/os-release
suite="${VERSION_CODENAME:-}-backports"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT INT TERM
lines="$folder/backports.list"

# The archive that serves this release's main suite: "[options] URI", from deb822 files, else from one-line ones.
archive=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk -v suite="$VERSION_CODENAME" '
    function done_() { if (uri != "" && index(" " suites " ", " " suite " ")) { print (key == "" ? "" : "[signed-by=" key "] ") uri; exit } uri = suites = key = "" }
    /^[ \t]*#/ { next }
    /^URIs:/ { uri = $2 } /^Suites:/ { sub(/^Suites:[ \t]*/, ""); suites = $0 } /^Signed-By:/ { key = $2 }
    /^[ \t]*$/ { done_() } END { done_() }' | head -n 1)
if [ -z "$archive" ]; then
    archive=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        sed -n "s/^deb \(\(\[[^]]*\] \)\{0,1\}[^ ]*\) $VERSION_CODENAME .*/\1/p" | head -n 1)
fi
[ -n "$archive" ] || { echo "no apt source for $VERSION_CODENAME found in /etc/apt" >&2; exit 1; }
echo "deb $archive $suite main" >"$lines"

mkdir "$folder/lists" "$folder/lists/partial"
scoped="-o Dir::Etc::SourceList=$lines -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$folder/lists"
# shellcheck disable=SC2086
apt-get $scoped -o APT::Update::Error-Mode=any -q update
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get $scoped -q -y --no-install-recommends -t "$suite" install runsc
runsc --version
