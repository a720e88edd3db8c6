"""Fuzzing of every reader: cases that the program made itself, changed at random, and what may come of them.

A case is a handful of small files. `readers.py` has one entry for each reader: how its first cases are made and how a
case is read. `mutations.py` changes a case. `running.py` reads many of them and tells what came out. The command is
`python benchmarks/fuzz.py`, the short version of it in the suite is `tests/test_fuzzing.py`.
"""
