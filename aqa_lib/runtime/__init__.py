"""Files, checkpoints, faults, processes: what knows no audio and no model.

Imports nothing else of the package; everybody may import it.
"""
