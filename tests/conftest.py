"""Beside other workers of pytest-xdist, each computes on one thread: more would wait for each other."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, here and in what the tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
