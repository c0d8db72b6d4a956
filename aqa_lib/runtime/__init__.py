"""Files, checkpoints, faults, processes: code that knows nothing of audio or models.

It imports nothing else from the package; any module may import it.
"""
