"""Triton kernels and their launchers, one module an op; installed as ``speechft.kernels``.

A launcher is a plain function on tensors: no autograd, no dispatch, no checks of values. Those are
in :mod:`speechft.functional`. Importing this package costs nothing; importing one of its modules
imports triton.
"""
