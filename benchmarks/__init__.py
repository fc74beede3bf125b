"""How fast this is, beside diffusers: same weights, same precision, same machine, in one run.

    python -m benchmarks [sampling|training|cold|all] [--quick]

    run.py        the command: which lanes are raced, and what is written
    setting.py    what is computed: shapes, weights, inputs, which both sides share
    ours.py       our lanes            peers/    diffusers' lanes, written plainly
    worker.py     one process a side: libraries and settings of one do not reach into the other
    race.py       rounds in turn, medians, quartiles            machine.py    what this machine can do at best
    report.py     docs/results/benchmarks.json and .md

    race_unets.py the command for U-Nets: steps, loading, training; SD 1.5's at full size; docs/results/benchmarks_unet.json and .md
    unets.py      their shapes, our lanes, and what is counted of them
    time_to_quality.py   minutes to the score that diffusers' plain loop reaches in half an hour
"""
