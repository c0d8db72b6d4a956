"""Finished files in, tables and figures out.

Never imports torch, except for the mel scale in `plotting`; the course, the command line and notebooks read here.
"""
