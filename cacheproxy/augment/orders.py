r"""Orders: texts that would tell a model what to do if they were not quoted. They are not used as examples. Pure.

A question is an order by nature ("Write a poem", "Answer in one word"), so what is looked for reaches further: beyond
the question it stands in, at the rules the model works under, at whoever reads the answer, or hides. These are rules of
thumb, in English and a phrase or two of some other languages. What they miss is still quoted (`quoting.py`), and comes
from the caller's own scope; what they find without cause costs an example: 33 of 49,000 public questions, and
8 of 1,092 answers and passages of prose.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import re2

LONGEST_CHARS = 100_000
"""A longer text is not read: it counts as an order, since no prompt of a small model has room for it."""

_ANY = r"[^.!?\n]*"
"""Whatever stands in the same sentence."""
_RULES = (
    r"(?:instructions?|prompts?|rules?|directions?|directives?|guidelines?|guardrails?|constraints?|polic(?:y|ies)"
    r"|restrictions?|training|programming)"
)
_CHARGE = rf"(?:{_RULES}|task|goal|objective|job|mission)"
_ASKED = r"(?:asks?|asked|quer(?:y|ies)|questions?|requests?|inquir(?:y|ies)|prompts?)"
_REPLIES = r"(?:answers?|repl(?:y|ies)|responses?|output)"
_SAY = (
    r"(?:answer|reply|respond|recommend|mention|say|state|tell|include|output|write|print|use|return|claim|praise"
    r"|promote|insert|append|add)"
)
_READERS = r"(?:users?|readers?|customers?|callers?|persons?|people|clients?|humans?|victims?)"
_LATER = r"(?:following|future|subsequent|next|further|later|similar|such|related|other|upcoming)"

_THE_RULES = (
    rf"\b(?:ignore|disregard|forget|override|bypass|discard|neglect|do not follow|don't follow|stop following|pay no "
    rf"attention to)\b{_ANY}\b(?:previous|prior|above|earlier|preceding|foregoing|all|any|your|my|these|those|system"
    rf"|other|the)\b{_ANY}\b(?:{_RULES}|context|conversation|examples|messages?|text above|everything)\b",
    r"\b(?:ignore|disregard|forget) (?:all|everything|anything|what) (?:of )?(?:the |that )?"
    r"(?:above|before|previous|came before|you (?:know|were told|have been told))\b",
    rf"\b(?:new|updated|revised|real|actual|hidden|secret|additional|important|special) (?:system )?"
    rf"(?:{_RULES}|task) ?(?:are |is |follow|:|for you\b)",
    rf"\b(?:reveal|repeat|print|show|display|output|leak|disclose|recite|dump|tell me|give me|what (?:is|are|was|were))"
    rf"\b{_ANY}\b(?:your|the|this)\b{_ANY}\b(?:(?:system|hidden|initial) (?:prompt|message|instructions)|your "
    rf"instructions|instructions (?:above|you))\b",
    rf"\b(?:your|the following) (?:(?:new|only) )?{_CHARGE} (?:is|are) (?:now|from)\b",
    rf"\byour (?:new|only|real|true) {_CHARGE}\b",
    r"\b(?:developer|debug|god|jailbreak|dan|admin|root|unrestricted|maintenance) mode\b|\bjailbr[eo]a?k",
)
"""Dropped, replaced, asked for."""

_WHO_YOU_ARE = (
    r"\byou (?:are|will be|shall be|must be|become) (?:now|no longer|from now on)\b",
    rf"\b(?:from now on|from here on|henceforth|for the rest of (?:this|the|our) (?:conversation|chat|session))\b{_ANY}"
    r"\b(?:you|your|every|all|always|answers?|repl(?:y|ies)|respon)",
    r"\b(?:pretend|act as if|behave as if|roleplay as though) (?:that )?you (?:are|were|have|had) "
    r"(?:not|no|never|free|unrestricted|an? (?:unrestricted|uncensored|evil))\b",
)

_FURTHER_QUESTIONS = (
    rf"\b(?:always|never|must only|only ever|in every (?:sentence|answer|reply|response)|everything you say"
    rf"|each of your answers|all (?:of )?your (?:answers|replies|responses))\b{_ANY}\b{_SAY}\b",
    rf"\b{_SAY}\b{_ANY}\b(?:in (?:every|each|all) (?:sentences?|{_REPLIES}|future)|no matter what (?:is|was|they|the "
    rf"user|you|i|anyone)|regardless of (?:the|what|which|any) (?:question|is asked|user|they))",
    rf"\b(?:whenever|when|if|every time|each time|any time|anytime|once) (?:you|the user|a user|users|anyone|anybody"
    rf"|someone|somebody|they|people|the question|a question|asked|questions)\b{_ANY}\b{_ASKED}\b{_ANY}\b{_SAY}\b",
    rf"\b(?:for|to|in) (?:all|any|every|each|the|these|those) (?:of the |other )?{_LATER} "
    rf"(?:{_ASKED}|{_REPLIES}|users?|conversations?|sessions?)\b",
    rf"\b(?:remember|memori[sz]e|store|save|learn) (?:this|that|it|the following)\b{_ANY}"
    rf"\b(?:future|later|next time|from now|always|whenever|{_ASKED})\b",
    rf"\b(?:refer|defer|redirect(?:ed)?|switch|turn|look|queried|stored|saved|moved|filed) "
    rf"(?:to|under|as|it to|them to|over to)\b{_ANY}\binstead\b",
)
"""What is planted for a later question (MINJA, arXiv 2503.03704, leads from one subject to another one's record)."""

_WHO_READS = (
    rf"\b(?:tell|ask|instruct|urge|persuade|convince|trick|get|direct|advise) "
    rf"(?:the|them|him|her|every|any|all|your|our|its) ?{_READERS}?\b{_ANY}\bto "
    r"(?:call|visit|send|click|download|pay|install|transfer|enter|share|email|mail|contact|buy|run|open|give|provide"
    r"|log ?in)\b",
    rf"\b(?:do not|don't|never) (?:tell|inform|warn|alert|let|reveal|mention)\b{_ANY}\b(?:the |any )?"
    rf"(?:{_READERS}|anyone)\b",
    rf"\b(?:your|the|this) {_REPLIES} (?:must|should|shall|has to|needs to|is to) (?:be that|always|only|say|state"
    r"|contain|claim|include (?:the )?(?:link|url|phrase|word|sentence)|recommend|mention|praise|promote)\b",
    rf"\b(?:make|be) (?:sure|certain) (?:that )?(?:your|the) {_REPLIES}\b",
    rf"\b(?:correct|right|only|true|proper) {_REPLIES} (?:to (?:this|any|every|all|such){_ANY} )?is "
    r"(?:always|that|now)\b",
    rf"\b(?:add|append|insert|include|attach|put)\b[^!?\n]*\b(?:to|in|into|at the (?:end|start|beginning) of) "
    rf"(?:the|your|every|each|any|all) {_REPLIES}\b",
    rf"\b(?:answer|reply|respond|lie|speak)\w*\b{_ANY}\b(?:falsely|wrongly|untruthfully|deceptively|the opposite of "
    r"what is true|on purpose|a (?:wrong|false|misleading) (?:answer|reply|response|lie))\b",
)

_MARKS = (
    r"<\s*\||\|\s*>|\[/?inst\]|<</?sys>>|</?past_answers"
    r"|\[/?(?:system_prompt|system|assistant|user|tool_calls|available_tools|tool_results)\]"
    r"|</?(?:system|assistant|user|developer|instructions?|prompt|s|bos|eos|start_of_turn|end_of_turn|tool_call"
    r"|tool_response)>",
    r"(?m:^)[\s#>*_(\[`-]*(?:system|assistant|developer|human|user|ai|instruction|response|chatgpt)"
    r"(?: (?:message|prompt|note|instruction|override|update|notice))?[\s*_`]*:",
    r"#{2,} ?(?:instruction|response|system|input)",
    r"[.!?\n(\[] ?system(?: (?:message|prompt|note|override|update))? ?:",
    r"\b(?:begin|end|start)(?:ning)?[ _-](?:of )?(?:the )?(?:system|new|admin)[ _-](?:prompt|message|instructions?)\b",
    r"<!--[^>]*\b(?:instructions?|ignore|answer|reply|output|system|assistant|model|ai)\b",
)
"""Of a prompt, within the text."""

_ELSEWHERE = (
    rf"\bignorier\w*\b{_ANY}\b(?:anweisung|vorgabe|regel|befehl|prompt)|\bvergiss\b{_ANY}\b(?:anweisung|alles|vorherig"
    r"|bisherig)|\bdu bist (?:jetzt|ab jetzt|nun)\b|\bab (?:jetzt|sofort) (?:bist|antwort|sag)",
    rf"\b(?:ignore[zr]?|oublie[zr]?)\b{_ANY}\b(?:instructions?|consignes?|r[eè]gles?|directives?)\b"
    r"|\b(?:tu es|vous [eê]tes) (?:maintenant|d[eé]sormais)\b|\bd[eé]sormais,? (?:tu|vous|r[eé]pond)",
    rf"\b(?:ignora|ignore|olvida|olvide)\b{_ANY}\b(?:instrucciones|reglas|indicaciones|instru[cç][oõ]es|regras)\b"
    r"|\b(?:ahora eres|a partir de ahora|agora voc[eê] [eé]|a partir de agora)\b",
    rf"\b(?:ignora|dimentica)\b{_ANY}\b(?:istruzioni|regole)\b|\bnegeer\b{_ANY}\b(?:instructies|regels)\b",
    r"(?:忽略|无视|無視|忘记|忘掉|忽視).{0,12}(?:指令|指示|提示|规则|規則|内容)|你现在是|从现在开始",
    r"これまでの指示|指示を無視|이전 지시|지시를 무시",
    r"игнорируй|забудь .{0,20}(?:инструкци|указани)|этого момента ты|تجاهل",
)
"""The same in other languages."""

_SHAPES = (*_THE_RULES, *_WHO_YOU_ARE, *_FURTHER_QUESTIONS, *_WHO_READS, *_MARKS, *_ELSEWHERE)

_HIDDEN = (
    r"[\x{E0000}-\x{E007F}\x{202D}\x{202E}]",
    r"[A-Za-z][\x{200B}-\x{200D}\x{2060}\x{2063}\x{00AD}\x{FEFF}][A-Za-z]",
    r"[A-Za-z][\x{0400}-\x{052F}][A-Za-z]|[\x{0400}-\x{052F}][A-Za-z]{2}|[A-Za-z]{2}[\x{0400}-\x{052F}]",
)
"""Characters that nobody sees, words cut by such, and Latin words with Cyrillic letters in them."""


def instruction_shaped(text: str) -> bool:
    """Whether a text looks as if it gave a model orders that reach beyond the question it stands in."""
    if len(text) > LONGEST_CHARS:
        return True
    sound = text.encode("utf-8", "replace").decode("utf-8")
    if not sound.isascii():
        if _compiled(_HIDDEN).search(sound) is not None:
            return True
        sound = unicodedata.normalize("NFKC", sound).replace("\u2019", "'")
    return _compiled(_SHAPES).search(sound) is not None


@cache
def _compiled(patterns: tuple[str, ...]) -> Any:
    """Compile for RE2: whoever writes the text cannot make the search slow."""
    options = re2.Options()
    options.case_sensitive = False
    options.never_capture = True
    return re2.compile("|".join(f"(?:{pattern})" for pattern in patterns), options)
