"""Audio models by family, and folders of models that cannot be trusted. Entered from `inputs`, `model` and above.

A new audio model is one class in `families`; `foreign` refuses a broken folder in one sentence before it is loaded.
"""
