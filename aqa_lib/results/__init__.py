"""Finished files in, tables and figures out.

It never imports torch, except for the mel scale in `plotting`; the course, the command line and notebooks import it.
"""
