"""The commands of `python -m aqa_lib`, one module each.

May import everything; only `__main__` imports it.
"""
