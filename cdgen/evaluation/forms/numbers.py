"""Numbers in the solutions of word problems."""

import re
from decimal import Decimal

_NUMBER = re.compile(
    r"(?:((?<![\w)\]])[-\N{MINUS SIGN}])?[$€£¥₹]?|[$€£¥₹]([-\N{MINUS SIGN}]))"  # sign and currency
    r"((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)
_FINAL = "####"  # precedes the result in the solutions of GSM8K


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text, or None if there is none.

    Only what follows the last `####` counts, if there is one. Digits are those of any script. A comma before exactly
    three digits separates thousands, and a point precedes decimals. A minus sign belongs to the number that it touches,
    unless a word, a number or a closing bracket is before it: `-4`, `-$4` and `$-4` are -4, but `10-4` ends with 4.
    Currencies, units and per cent signs are ignored, and `1/2` ends with 2.
    """
    found = list(_NUMBER.finditer(text.rpartition(_FINAL)[2]))
    if not found:
        return None
    minus, inner_minus, digits = found[-1].groups()
    value = Decimal(digits.replace(",", ""))
    return -value if minus or inner_minus else value
