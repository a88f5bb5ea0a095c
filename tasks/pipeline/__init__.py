"""What every stage needs: the stage decorator, the run's workspace, progress bars and resource errors.

In: the runtime settings and the artifact store. Out: nothing of its own; the other rooms publish their artifacts
through it.
"""
