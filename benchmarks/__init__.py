"""How fast this is, beside diffusers: same weights, same precision, same machine, in one run.

    python -m benchmarks [sampling|training|cold|all] [--quick]

    run.py        the command: which lanes are raced, and what is written
    setting.py    what is computed: shapes, weights, inputs, which both sides share
    ours.py       our lanes            peers/    diffusers' lanes, written plainly
    worker.py     one process a side: libraries and settings of one do not reach into the other
    race.py       rounds in turn, medians, quartiles            machine.py    what this machine can do at best
    report.py     docs/results/benchmarks.json and .md
"""
