"""The forms of tasks by name."""

import importlib

from cdgen.errors import InputError
from cdgen.evaluation.forms.base import Form

_CLASSES = {  # class of each form, in the module of the form's name
    "perplexity": "Perplexity",
    "minimal_pairs": "MinimalPairs",
    "ewok": "Ewok",
    "entity_tracking": "EntityTracking",
    "wug": "Wug",
    "reading": "Reading",
    "multiple_choice": "MultipleChoice",
    "math_word_problems": "MathWordProblems",
    "held_out": "HeldOut",
}
FORMS = tuple(_CLASSES)


def form(name: str) -> Form:
    """Return the form with this name.

    Raises:
        InputError: there is no such form.
    """
    if name not in _CLASSES:
        raise InputError(f"form = {name!r}: use one of {', '.join(FORMS)}")
    found: Form = getattr(importlib.import_module(f"{__name__}.{name}"), _CLASSES[name])()
    return found
