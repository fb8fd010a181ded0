"""Reproductions on generated and real street scenes; the library itself never imports this package.

Needs the extras ``pip install 'segunc_ops[experiments]'`` (NumPy, Pillow, Matplotlib, torchmetrics,
tqdm).
"""

from importlib.util import find_spec

MAX_CLASSES = 1 << 14
"""The most that a data set may declare: a figure of each pair of classes then takes 2 GB."""

_EXTRAS = {
    "numpy": "numpy",
    "PIL": "pillow",
    "matplotlib": "matplotlib",
    "torchmetrics": "torchmetrics",
    "tqdm": "tqdm",
}


class MissingExtrasError(ImportError):
    """A package that only the experiments need is not installed."""


def require_extras() -> None:
    """Checks that the packages of the ``experiments`` extra can be imported.

    Raises:
        MissingExtrasError: names the missing packages and the command that installs them.
    """
    missing = [package for module, package in _EXTRAS.items() if find_spec(module) is None]
    if missing:
        raise MissingExtrasError(
            f"the experiments need {', '.join(missing)}: run "
            "`pip install 'segunc_ops[experiments]'`"
        )
