"""``python -m speechft.bench soft_dtw``: the same as ``speechft bench soft_dtw``."""

from .run import main

raise SystemExit(main())
