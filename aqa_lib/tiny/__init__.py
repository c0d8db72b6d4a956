"""The tiny world: its sounds, its questions, its small talk, and the base model that grew up in it.

It imports the flow; only the course, the command line and tests import it.
"""
