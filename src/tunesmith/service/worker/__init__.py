"""What works on jobs: a supervisor, and a process for each job at work.

`supervise` starts processes and looks after them, `process` is such a process; `working` takes a job from its files to
its model, `finishing` hands the model over, `measuring` finds out what it was worth; `desk` is where all of them write.
"""
