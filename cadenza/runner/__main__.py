"""The runner's entry, started by its path: ``python3 -I -S .../cadenza/runner/__main__.py``."""

import sys

if __name__ == "__main__":
    # At the end of the path: the user's own packages come first. `surroundings` finds it there again.
    sys.path.append(__file__.rsplit("/cadenza/runner/", 1)[0])
    from cadenza.runner import session

    session.main()
