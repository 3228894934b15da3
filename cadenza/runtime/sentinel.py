"""Ends the containers of an agent that died without a word (SIGKILL, out of memory), at once.

An agent that ends in order ends its containers itself, and the next one removes what is left. In between nobody would
hold them to their timeouts or to their app's budget, however long it takes. So a shell waits at the end of a pipe
that only the agent holds: it needs no memory to speak of, and nothing that goes wrong in Python reaches it.
"""

from __future__ import annotations

import os
import subprocess
from typing import Optional, Sequence

QUIT_LIMIT_S = 2.0
"""How long an agent that ends in order waits for it."""

# A whole line is the good-bye of an agent that ends in order; the pipe's end alone is its death.
# Names are read once: a next agent on the same directory has containers of other names. Several turns: what was just
# being started joins its cgroup a moment later, and what forks is seen in the next turn.
SCRIPT = """
trap '' HUP INT QUIT TERM
read -r word && exit 0
state=$1; parent=$2; shift 2
names=
for folder in "$state"/*/*/; do folder=${folder%/}; names="$names ${folder#"$state"/}"; done
end() {
    while read -r pid; do [ "$pid" -gt 1 ] && kill -9 "$pid" && found=1; done <"$1"
}
quiet=0
for turn in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    found=0
    for name in $names; do
        grouped=0
        for root in "$@"; do
            group=$root/$parent/${name#*/}
            [ -d "$group" ] || continue
            grouped=1
            [ -w "$group/cgroup.kill" ] && echo 1 >"$group/cgroup.kill"
            for file in "$group/cgroup.procs" "$group"/*/cgroup.procs "$group"/*/*/cgroup.procs; do
                [ -r "$file" ] && end "$file"
            done
        done
        [ $# = 0 ] && [ $turn = 1 ] && [ -r "$state/$name/pid" ] && { cat "$state/$name/pid"; echo; } |
            while read -r pid; do [ "${pid:-0}" -gt 1 ] && kill -9 "$pid"; done
    done
    [ $found = 0 ] && quiet=$((quiet + 1)) || quiet=0
    [ $quiet = 5 ] && break
    sleep 0.1
done
"""


class Sentinel:
    """One for an agent, from its start to its end."""

    def __init__(self, state_dir: str, parent: str, roots: Sequence[str]) -> None:
        """``state_dir`` has a directory for each driver, and in it one for each container. ``parent`` is the cgroup
        below which they are, in each of the hierarchies ``roots``; without any, what is named in files ``pid`` is
        ended. OSError when there is no shell."""
        self._process: Optional[subprocess.Popen[bytes]] = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "cadenza-sentinel", state_dir, parent, *roots],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd="/", env={"PATH": os.defpath}, start_new_session=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id; 0 after `close`."""
        return self._process.pid if self._process is not None else 0

    def close(self) -> None:
        """The agent has ended its containers: nothing is to be done. Waits a moment for the shell."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        try:
            process.stdin.write(b"done\n")
            process.stdin.close()
        except OSError:
            pass
        try:
            process.wait(QUIT_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
