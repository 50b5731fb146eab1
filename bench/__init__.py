"""Benchmarks: each op against its reference, its peers and the floor of the machine.

``speechft bench soft_dtw`` runs them, and so do :func:`speechft.bench.run.run` and
``pytest bench/``. An op's file registers its cases (:mod:`~speechft.bench.registry`); all ops write
one kind of row (:class:`speechft.bench.rows.Row`). Installed as ``speechft.bench``.
"""
