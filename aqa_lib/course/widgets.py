"""ipywidgets, imported when something interactive is first shown: what only computes needs none."""

from ..runtime.errors import AqaError


def __getattr__(name: str):
    try:
        import ipywidgets
    except ImportError as error:
        raise AqaError("what can be clicked needs ipywidgets: pip install ipywidgets") from error
    return getattr(ipywidgets, name)
