"""Making foreign text data: nothing in it can pass for a piece of a chat template, whatever the model."""

from __future__ import annotations

import re
import unicodedata

from icrl.errors import ConfigError
from icrl.runtime.tools.web.characters import clean

__all__ = ["one_line", "sanitise"]

# Single words that templates, dialects and training recipes put between angle brackets. What is put there with an
# underscore, a colon, a bar, an equals sign or a number needs no list.
_TAGS = (
    "s bos eos pad unk mask cls sep sop eop eot eod pre suf mid sys system user assistant human tool tools model "
    "function functions invoke parameter parameters argument arguments answer final information search python code "
    "interpreter output result results observation action thought think thinking reasoning reflection scratchpad "
    "context document documents example examples instruction instructions prompt query question response message turn "
    "image audio video box ref quad filename reponame endoftext"
)
_WORDS = "BOS EOS PAD UNK CLS SEP MASK gMASK sMASK THINK IMG PREFIX SUFFIX MIDDLE ARGS SYSTEM USER ASSISTANT TOOL"

_LOOK_AHEAD = 80
# An opening bracket, or a character that some tokenizers (NFKC) turn into one, and what follows.
_OPENING = re.compile(rf"([<\uff1c\ufe64\[\uff3b\ufe47])(?=(.{{0,{_LOOK_AHEAD}}}))", re.DOTALL)
_ANGLE = re.compile(
    rf"""\s{{0,4}}\|                                                    # <|im_start|>
    | /?(?:{_TAGS.replace(" ", "|")})\d{{0,4}}(?![a-z])                 # <answer>, </s>, <<SYS>>, <think unfinished
    | \s{{0,4}}/?\s{{0,4}}(?:{_TAGS.replace(" ", "|")}|[a-z]{{1,32}}_[a-z_]{{0,32}})\s{{0,4}}>  # < / answer >
    | /?[a-z][a-z0-9.-]{{0,63}}(?:[_=|]|:(?!//))                        # <tool_call>, <function=…>, <seed:think>
    | /?_                                                               # <_start>
    | /?(?:unused|reserved|extra|special|0x)\w{{0,32}}>                 # <unused7>, <0x0A>
    | /?(?-i:[A-Z]{{2,32}})>                                            # <EOT>""",
    re.VERBOSE | re.IGNORECASE,
)
_SQUARE = re.compile(
    rf"""\s{{0,4}}\|                                                    # [|user|]
    | \s{{0,4}}/?\s{{0,4}}(?:(?i:INST|SYS)|{_WORDS.replace(" ", "|")})\s{{0,4}}\]
    | /?[A-Z][A-Z0-9]{{0,31}}_[A-Z0-9_]{{0,63}}\]                       # [TOOL_CALLS], [UNUSED_TOKEN_3]""",
    re.VERBOSE,
)


def sanitise(text: str, *, max_chars: int) -> str:
    """Make a text plain data: invisible characters go, tokens and tags of models are escaped, what is too long is cut.

    `<` becomes `&lt;` and `[` becomes `&#91;` where they begin something that looks like a control token, a role, a
    tool call or an answer, of any model; all other text stays. Doing it again changes nothing.

    Args:
        text: Foreign text.
        max_chars: Length of the result at most, the notice where it was cut included.

    Raises:
        ConfigError: `max_chars` leaves no room for the notice.

    Example:
        >>> sanitise("1 < 2 <|im_start|>system [INST] </answer>", max_chars=100)
        '1 < 2 &lt;|im_start|>system &#91;INST] &lt;/answer>'
    """
    if max_chars < 100:
        raise ConfigError(f"max_chars: must be >= 100, not {max_chars!r}")
    # What lies beyond cannot be shown, and is not worth the time.
    head = clean(text[: 2 * max_chars])
    safe = _escape(head)
    dropped = max(0, len(text) - 2 * max_chars)
    return safe if len(safe) <= max_chars and not dropped else _cut(head, dropped, max_chars)


def one_line(text: str, *, max_chars: int) -> str:
    r"""Make a text plain data on a single line.

    Example:
        >>> one_line("Rikor\n  and <tool_call>", max_chars=100)
        'Rikor and &lt;tool_call>'
    """
    return sanitise(" ".join(clean(text[: 4 * max_chars]).split()), max_chars=max_chars)


def _escape(text: str) -> str:
    return _OPENING.sub(_neutral, text)


def _neutral(match: re.Match[str]) -> str:
    bracket, follows = match[1], match[2]
    if not follows.isascii():
        follows = unicodedata.normalize("NFKC", follows).replace("\u2581", "_")
    if bracket in "<\uff1c\ufe64":
        return "&lt;" if _ANGLE.match(follows) else bracket
    return "&#91;" if _SQUARE.match(follows) else bracket


def _cut(text: str, dropped: int, max_chars: int) -> str:
    keep = max_chars
    while True:
        notice = f" (… {len(text) - keep + dropped} more characters)"
        # Escaped after the cut: it may have ended a longer word where the name of a tag ends.
        safe = _escape(clean(text[:keep]).rstrip()) + notice
        if len(safe) <= max_chars:
            return safe
        keep -= max(1, len(safe) - max_chars)
