"""What the notebooks call: recipes, kept artifacts, displays, the error browser, the renderer.

May import everything but the command line; nothing but notebooks and the command line imports it.
"""
