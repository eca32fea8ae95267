"""The subjects of `bench/hold.py`, one module each.

AIMS: the experiment and its aims, in one or two sentences.
run(short, folder): runs the experiment and yields a `rig.report.Row` for each aim. folder: empty, removed afterwards.
short: the form for continuous integration, which takes some 25 seconds and has aims that a busy machine meets too.
"""
