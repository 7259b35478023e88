"""
An instance under load while one fault after the other is thrown at it.

`make soak`, or `PYTHONPATH=tests python -m soak --seconds 60 --seed 7`; and `python -m
soak.reloads` for what reloads cost those who are served meanwhile.
"""
