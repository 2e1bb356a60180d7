"""Parses answers strictly: reads the option that an answer clearly names, and otherwise nothing.

1. Only the text after the model's reasoning (``</think>``) is read or, if there are such, the text inside ``<answer>``
   or ``\\boxed{}``.
2. A stated answer counts: a letter and nothing else, "the answer is X", "I choose X", "X is correct"; but not if the
   sentence doubts it, denies it or is a question.
3. Otherwise a letter counts that is a label at the beginning of the text: "X.", "X) its words", "X, because ...".
4. Otherwise a letter counts that is in brackets, after "option" or alone in its clause; and otherwise the words of an
   option, unless the sentence denies them.
5. The first of these rules that finds anything decides. Two letters are no answer, whether joined or corrected ("A or
   B", "A rather than B", "A. No, B"), and neither is a label with the words of another option.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence

from videollama2.eval.items import Parsed

_INVISIBLE = "Cf"
"""Unicode's category of characters without a width: marks of direction, joiners, the mark of byte order."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# The marks with which models end their reasoning, before the answer itself.
_THOUGHT_ENDS = re.compile(
    r"</think(?:ing)?>|</thoughts?>|</reasoning>|</reflection>|\[/THINK\]|◁/think▷"
    r"|<\|channel\|>\s*final\s*<\|message\|>",
    re.I,
)
_THOUGHT_BEGINS = re.compile(r"<think(?:ing)?>|<thoughts?>|<reasoning>|<reflection>|\[THINK\]|◁think▷", re.I)
_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.I | re.S)
_BOXED = re.compile(r"\\boxed\s{0,9}\{((?:[^{}]|\{[^{}]{0,99}\}){0,999})\}")
_DRESS = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\b|<\|[^|<>]*\|>|</?s>|<end_of_turn>|[*`$\"“”_#]|(?<!\w)'|'(?!\w)")
_BRACKETS = str.maketrans("[]{}【】「」『』", "()()()()()")

_DENIED = re.compile(
    r"n't\b|\b(?:not|no|nor|neither|never|none|cannot|without|wrong|incorrect(?:ly)?|false|untrue|invalid|unlikely|least|"
    r"except|exclud\w+|eliminat\w+|reject\w*|discard\w*|rul(?:e|es|ed|ing) out|other than|unlike|doubt\w*)\b",
    re.I,
)
_CERTAIN = re.compile(r"\b(?:there is no|no|without(?: an?y?)?|beyond(?: an?y?| all)?) (?:doubt|question)\b", re.I)
_UNSURE = re.compile(
    r"\b(?:whether|if|unless|unsure|uncertain|unclear|initially|at first|tempting|either|both)\b",
    re.I,
)
_TURN = re.compile(r"\b(?:wait|actually|correction|sorry|on second thoughts?|hmm|instead|however|but|no)\b", re.I)
_REASON = re.compile(r"\b(?:because|since|as|while|although|though|whereas)\b", re.I)
_CLAUSE = re.compile(r"[.;!?\n]|\b(?:but|wait|actually)\b|\bno,|,?\s\b(?:so|therefore|hence|thus)\b", re.I)
_OPENING = re.compile(r"^\W*(?:(?:no|yes|wait|actually|sorry|hmm)\b\W*)+", re.I)
_SUBORDINATE = re.compile(
    r"^\s*(?:(?:since|because|as|although|though|given|while|when|after)\b[^,]*|if i (?:had|have) to \w+),", re.I
)

# A letter that is a word of its own. A is an article before most words, and I is usually a pronoun. A small letter
# counts only after "answer" or the like.
_A_GOES_ON = r"because|since|as|while|and|or|nor|but|so|is|was|seems|looks|appears|must|would|shows|instead|rather|over"
_CAPITAL = rf"(?:A(?![\w'’])(?!\s+(?!(?:{_A_GOES_ON})\b)[a-z])|[B-HJ-Z](?![\w'’])|I(?=\s*(?:[.,;:!?)]|$)))"
_ANY_CASE = rf"(?:{_CAPITAL}|a(?![\w'’])(?!\s+[a-z])|[b-hj-z](?![\w'’]))"
_END = r"(?=\s*(?:[.,;:!)\n]|$)|\s+(?:because|since|as|while|but|and|or|rather|instead)\b)"
_FILLER = (
    r"(?:(?i:the|an?|option|choice|letter|answer|still|clearly|therefore|definitely|most|likely|probably|indeed|obviously|"
    r"certainly|simply|correct|best|right)\s+)*"
)
_IS = r"(?i:is|are|was|be|would be|must be|should be|has to be|seems to be|:|=|->|→|-|–|—)"
_GAP = r"(?P<gap>(?:(?!\b(?i:answer|option|choice)\b)[^.;!?\n]){0,60}?)"
_RIGHT = (
    r"(?i:(?:my|our) (?:answer|choice|pick)|"
    r"correct|right(?!-|\s+(?:hand|side|foot|arm|leg|of)\b)|best|true|accurate|the answer|answer|likely|fitting|"
    r"appropriate|suitable)\b"
)
_STATED = (
    # the best answer, in my view, is (B); Answer: B; answer B
    re.compile(
        rf"\b(?:(?i:answers?|option|choice|response|ans|letter)\b{_GAP}(?:\b|(?<=\W)){_IS}\s*:?\s*{_FILLER}"
        rf"|(?i:answer|ans)\b[.\s]*)\(?\s*(?P<letter>{_ANY_CASE})"
    ),
    # I choose B; I would go with option B
    re.compile(
        r"\b(?i:choose|chose|pick|picked|select|selected|selecting|go with|going with|went with|opt for)\b\s*:?\s*"
        rf"(?P<gap>){_FILLER}\(?\s*(?P<letter>{_CAPITAL}|[b-hj-z](?=\s*\)?\s*(?:[.,;!\n]|$)))"
    ),
    # B is correct; (B) seems to be the best choice
    re.compile(
        rf"(?<![\w'’])(?P<letter>{_CAPITAL})\)?\s+(?i:is|seems|looks|appears|must be|would be|has to be)\s+"
        rf"(?P<gap>)(?i:to be\s+)?(?i:(?:clearly|definitely|most|the|probably|indeed|obviously|certainly)\s+)*{_RIGHT}"
    ),
    # it is B
    re.compile(
        rf"\b(?i:it|this|that)(?:'s|’s|\s+(?i:is|must be|would be|has to be))\s+(?P<gap>){_FILLER}"
        rf"\(?\s*(?P<letter>{_CAPITAL}){_END}"
    ),
    # in other languages
    re.compile(
        r"(?<![不别非])(?:答案|选项|選項|选择|選擇|选|選)\W{0,3}(?:应该)?(?:是|为|為)?\W{0,3}(?P<gap>)(?P<letter>[A-Z])"
        r"(?![a-z]|\s*(?:选项)?(?:是)?[不错误非])"
    ),
    re.compile(
        r"(?:(?i:respuesta|réponse|antwort|resposta|risposta)\b(?P<gap>[^.;!?\n]{0,30}?)(?:\b(?:es|est|ist|é|è)\b|:)"
        r"|(?:答え|正解|정답|답|ответ)\s*(?:は|은|는)?)\W{0,3}(?P<letter>[A-Z])(?![\w])"
    ),
)
_SAYS_ANSWER = 0  # index of the statement that also counts if the letter may be a name
_JOIN = r"\)?\s*(?:,|/|&|\band\b|\bor\b|\bnor\b|\brather than\b|\binstead of\b|\bover\b|\bversus\b|\bvs\b\.?)\s*"
_JOINED = re.compile(rf"{_JOIN}(?:(?i:also|maybe|option|choice|and|or)\s+)*\(?\s*(?P<letter>{_CAPITAL})")
_LABEL = re.compile(
    r"\(?\s*(?P<letter>[A-Za-z])(?:\s*\)\s*[.,:;]?|\s*[.:、。](?!\s?\w\.)|(?:(?<=[A-Z])(?:\s*[,;!]|\s+[-–—]\s|\s+(?=(?:because|since|as|"
    r"while|due)\b))))"
)
_AFTER_LETTER = re.compile(r"^\s*\)?\s*[.:,;–—-]?\s*")
_LATER_LABEL = re.compile(r"(?:\n|;|[.!?]\s)\s*\(?(?P<letter>[A-Z])[.):](?=\s|$)")
_BRACKETED = re.compile(r"\(\s*(?P<letter>[A-Za-z])\s*(?:\)|$)")
_OPTION = re.compile(rf"\b(?i:option|choice|letter|answer)\s*\(?\s*(?P<letter>{_ANY_CASE})")
_ALONE = re.compile(
    r"\s*(?i:(?:definitely|probably|clearly|likely|so|thus|hence|therefore|then|finally|maybe|perhaps|only|just|surely|certainly|"
    r"i(?:'d| would| will)?\s+(?:think|say|guess|believe)|my guess|must be|it is|it's|is)\s+)*(?P<letter>[A-Z])\s*"
)


def after_thinking(text: str) -> str:
    """Return the text after the model's reasoning, which is empty if the reasoning never ends."""
    ends = list(_THOUGHT_ENDS.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    begins = _THOUGHT_BEGINS.search(rest)
    return rest[: begins.start()] if begins else rest


def strict_option(output: str, options: Sequence[str], names: Collection[str] = ()) -> Parsed:
    """Return the option that an answer clearly names, or None, by the rules at the head of this module.

    Args:
        output: answer of the model.
        options: texts of the options, without letters.
        names: letters that may also be a person's name (EgoSchema calls the camera wearer C), so that alone in a
            sentence they do not name an option.
    """
    text = _readable(output)
    known = LETTERS[: len(options)]
    for find in _STEPS:
        letters = find(text, options, names)
        if letters:
            letter = letters.pop()
            return Parsed(known.index(letter) if not letters and letter in known else None)
    named = {index for index, option in enumerate(options) if _says(text, option)}
    # An answer with the option "turns right" also has the words of the option "right"; the longer one is meant.
    named = {i for i in named if not any(i != j and _says(options[j], options[i]) for j in named)}
    return Parsed(named.pop() if len(named) == 1 else None)


def _readable(output: str) -> str:
    """Return the answer without reasoning, tags, markup and quotes, in plain letters and with round brackets."""
    plain = unicodedata.normalize("NFKC", output)
    text = after_thinking("".join(char for char in plain if unicodedata.category(char) != _INVISIBLE))
    for wrapped in (_ANSWER_TAG, _BOXED):
        if inside := wrapped.findall(text):
            text = inside[-1]
    text = _CERTAIN.sub("", text)
    return _DRESS.sub("", text.replace("’", "'").translate(_BRACKETS)).strip()


def _whole(text: str, options: Sequence[str], names: Collection[str]) -> set[str]:
    """Find the letters of a text that has nothing else: "B", "(b)", "B B", "A, B"."""
    return set(re.findall(r"[A-Z]", text.upper())) if re.fullmatch(r"\W*[A-Za-z](?:\W+[A-Za-z])*\W*", text) else set()


def _stated(text: str, options: Sequence[str], names: Collection[str]) -> set[str]:
    """Find the letters that a sentence states to be the answer."""
    letters: set[str] = set()
    end = 0
    for number, pattern in enumerate(_STATED):
        for match in pattern.finditer(text):
            if number != _SAYS_ANSWER and match["letter"] in names:
                continue
            if not _is_meant(text, match):
                continue
            letters |= {match["letter"].upper(), *_joined_to(text, match.end())}
            letters |= _words_of_another(text, match, options)
            end = max(end, match.end())
    return letters | (_corrected(text[end:], letters) if letters else set())


def _is_meant(text: str, match: re.Match[str]) -> bool:
    """Whether a sentence means what it states, that is, neither doubts it nor denies it nor asks whether it is so."""
    before = _CLAUSE.split(text[: match.start()])[-1]
    before = _SUBORDINATE.sub("", before)
    between = match["gap"] or ""
    asked = re.match(r"\)?\s*\?", text[match.end("letter") :])
    another = re.search(rf"(?<![\w']){_CAPITAL}", between)
    denied = _is_denied_at_once(_REASON.split(re.split(r"[(,.;!?\n]", text[match.end() :].lstrip(")"))[0])[0])
    # In "A is wrong, B is right", the denial concerns the other letter only.
    nearest = re.split(rf"(?<![\w']){_CAPITAL}[^,]*,", before)[-1]
    return not (asked or another or denied or _UNSURE.search(before + between) or _DENIED.search(nearest + between))


def _words_of_another(text: str, match: re.Match[str], options: Sequence[str]) -> set[str]:
    """Return the letters of the options whose words stand beside the letter as its text, if its own do not."""
    rest = _AFTER_LETTER.sub("", text[match.end("letter") :], count=1)
    own = {LETTERS[index] for index, option in enumerate(options) if _begins(rest, option)}
    return set() if match["letter"].upper() in own else own


def _joined_to(text: str, place: int) -> Iterator[str]:
    """Yield the letters that "or", "and", "rather than" or a comma join to the letter that ends at ``place``."""
    while match := _JOINED.match(text, place):
        yield match["letter"]
        place = match.end()


def _corrected(rest: str, letters: set[str]) -> set[str]:
    """Find other letters that follow a correction ("no, C"; "but B is possible") and are not denied there."""
    found: set[str] = set()
    for sentence in re.split(r"[.;!?\n]", rest):
        turn = _TURN.search(sentence)
        if turn and not _DENIED.search(sentence, turn.end()):
            found |= set(re.findall(rf"(?<![\w'])({_CAPITAL})", sentence[turn.end() :]))
    return found - letters


def _label(text: str, options: Sequence[str], names: Collection[str]) -> set[str]:
    """Find the letter at the beginning if it is a label, together with all letters that contradict it."""
    match = _LABEL.match(text)
    if not match:
        return _before_words(text, options, names)
    letter, rest = match["letter"].upper(), text[match.end() :].strip()
    own = [index for index, option in enumerate(options) if _begins(rest, option)]
    is_own = letter in LETTERS[: len(options)] and LETTERS.index(letter) in own
    if not is_own and (letter in names and "(" not in match[0] or _is_denied_at_once(rest)):
        return set()
    others = {LETTERS[index] for index in own} if own and not is_own else set()
    later = {each["letter"] for each in _LATER_LABEL.finditer(text, match.end())}
    later |= {LETTERS[index] for index, option in enumerate(options) if _is_listed(rest, LETTERS[index], option)}
    joined = set(_joined_to(text, match.end("letter")))
    return {letter} | others | later | joined | _corrected(rest, {letter})


def _before_words(text: str, options: Sequence[str], names: Collection[str]) -> set[str]:
    """Find a letter directly before the words of an option ("C two dogs"), and the letter of that option."""
    match = re.match(r"(?P<letter>[B-Z])\s+", text)  # A may be an article there
    if not match or match["letter"] in names:
        return set()
    own = {LETTERS[index] for index, option in enumerate(options) if _begins(text[match.end() :], option)}
    return {match["letter"], *own} if own else set()


def _is_denied_at_once(rest: str) -> bool:
    """Whether the text after a letter denies it at once ("A: no"; "A, which is wrong"; but not "A, not B")."""
    first = " ".join(rest.split()[:4])
    return bool(_DENIED.search(first)) and not re.match(rf"(?i:and\s+)?(?i:not|nor)\s+\(?{_CAPITAL}", first)


def _mentioned(text: str, options: Sequence[str], names: Collection[str]) -> set[str]:
    """Find letters in brackets, after "option", or alone in a clause, in sentences that deny nothing."""
    letters: set[str] = set()
    for sentence in re.split(r"[.;!?\n]|\bbut\b|\bhowever\b", text):
        sentence = _REASON.split(_SUBORDINATE.sub("", _OPENING.sub("", sentence)))[0]
        sentence = re.sub(r"\([^()]{0,999}\)", lambda aside: "" if _DENIED.search(aside[0]) else aside[0], sentence)
        if _DENIED.search(sentence):
            continue
        for pattern in (_BRACKETED, _OPTION):
            for match in pattern.finditer(sentence):
                letters |= {match["letter"].upper(), *_words_of_another(sentence, match, options)}
        for match in re.finditer(rf"(?<![\w'])(?P<letter>{_CAPITAL})", sentence):
            if joined := set(_joined_to(sentence, match.end())):
                letters |= {match["letter"], *joined}
        alone = {match["letter"] for clause in re.split(r"[,:()]", sentence) if (match := _ALONE.fullmatch(clause))}
        letters |= alone - set(names)
    return letters


def _begins(text: str, option: str) -> bool:
    words = option.strip().rstrip(".").lower()
    return bool(words) and re.match(rf"{re.escape(words)}(?!\w)", text.lower()) is not None


def _is_listed(text: str, letter: str, option: str) -> bool:
    """Whether the text contains the option with its label before it."""
    words = option.strip().rstrip(".").lower()
    return (
        bool(words) and re.search(rf"\(?\b{letter.lower()}[.):]\s*{re.escape(words)}(?!\w)", text.lower()) is not None
    )


def _says(text: str, option: str) -> bool:
    """Whether the text contains the words of ``option`` in sequence, in a sentence that does not deny them."""
    words = re.escape(option.strip().rstrip(".").lower())
    if not words:
        return False
    for match in re.finditer(rf"(?<!\w){words}(?!\w)", text.lower()):
        before = _CLAUSE.split(text[: match.start()])[-1]
        after = re.split(r"[.;!?,\n]", text[match.end() :])[0]
        if not (_DENIED.search(before) or _UNSURE.search(before) or _DENIED.search(" ".join(after.split()[:3]))):
            return True
    return False


_STEPS: tuple[Callable[[str, Sequence[str], Collection[str]], set[str]], ...] = (_whole, _stated, _label, _mentioned)
