"""Fine-tuning jobs: what may be asked for, what becomes of it, and what is told on the way.

`request` is a job as it is asked for, `operations` what is done with jobs; `rules` checks their files,
`hyperparameters` turns `auto` into numbers, `recipe` makes a run of a job; `events` and `results` tell what happened.
Nothing here knows HTTP.
"""
