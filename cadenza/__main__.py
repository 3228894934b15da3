"""``python -m cadenza`` is the ``cadenza`` command."""

from __future__ import annotations

from cadenza.cli.main import main

if __name__ == "__main__":
    main()
