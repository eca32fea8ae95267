"""The subjects of `bench/hold.py`, a module each.

AIMS: what is done to the pool and what has to hold, in a sentence or two.
run(short, folder): does it and yields a `rig.report.Row` for each aim. folder: an empty one, removed afterwards. short:
the form that continuous integration runs, in some 25 seconds and with aims that hold on a busy machine too.
"""
