"""Foreign: whether a text is in another language than the verifier's, which is English. Pure.

A script tells at once. Latin letters are told by their words: an English question of some length has a word of English
grammar, and most of its other words are in the lexicon; names alone have neither. Of QQP's questions 0.1 % are taken
for foreign ones (docs/decisions/0037-verifier.md), and what is taken so may still be served where it is equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.verify import lexicon
from cacheproxy.verify.vocabulary import CONTRACTIONS, FUNCTION, LANGUAGE_WORDS, STOP

if TYPE_CHECKING:
    from collections.abc import Iterable

_READ = 60
"""Words that are looked at."""
_LATIN_MORE = range(0x1E00, 0x1F00)
_FEWEST = 3
"""Words from which on it tells something that none of them is of English grammar; of two, both must be unknown."""

_SHARED = frozenset(
    """a an as at be by come can do die den fin for from had hat he her his i if in is it made man me mine no nor not of
    on one or pa plus pour see so some son sur the to us use war was we were what who will yo""".split()
)
"""Words of English grammar that are common elsewhere, too, or the other way round: they tell nothing."""
_ENGLISH = (STOP | FUNCTION | frozenset(CONTRACTIONS)) - _SHARED | frozenset(
    "the are of and to what how does can my for with it why which who will".split()
)
_ELSEWHERE = (
    frozenset(
        """
    den dem des einen einem einer sich auch aber oder wenn bei nach aus um durch welche welcher welches wer wem wieviel
    viel viele darf soll muss sind war haben hat gibt geht mir mich dir dich sein seine ihre unser
    dans avec sans mais ou où qui quoi ce cette ces son sa ses leur nous ils elles suis sont être avoir fait faire
    combien quels quelles puis-je peut-on est-ce qu'est-ce peut peux faut au aux après avant
    cuál cuáles cuánto cuánta cuántos quién quiénes dónde cuándo adónde sobre entre sin desde hasta muy más mejor hacer
    tengo tiene ser son este esta eso sus nuestro ella ellos le lo al hay debo puede si sì
    quanto quanti quali chi dove anche sono sei ha hanno fare posso puoi questo questa nel nella sul della dello dei
    degli delle gli alla allo
    quem qual quanto quais onde também mas sou tem fazer pode isso esta este pelo pela dos das nos nas ao
    wie wat waarom hoeveel wanneer mijn jouw zijn haar hun deze dit dat niet geen ook maar naar bij uit ik jij wij
    hur vad när vem vilken vilka varför är och att det som jag inte en ett på för med till kan min mitt ska
    hvordan hvad hva hvem hvor hvornår når hvilken hvilke hvorfor er og ikke jeg på til af av mit skal
    miten mikä mitä missä milloin kuka miksi kuinka onko olen voinko ja ei se että
    jak jaki jaka jakie jakiego co czy gdzie kiedy kto dlaczego ile jest są nie się mój moje na do z w od dla przez mogę
    jaký jaká jaké kde kdy kdo proč kolik je jsem není mohu můžu můj pro bez nebo
    ako kako gdje gde šta što kada zašto koliko koji koja koje li sam nije mogu
    cum ce unde când cine care cât câte este sunt nu pot meu mea pentru din sau și în cu
    hogyan hogy mi mit mikor hol ki miért mennyi hány melyik van vagyok nem lehet az egy és vagy
    nas\u0131l ne nerede kim kimdir neden niçin kaç hangi m\u0131 mi mu mü var yok ve bir bu için ile benim nedir
    nelerdir
    bagaimana cara apa apakah siapa mana kapan mengapa berapa yang di ke dari untuk dengan tidak saya bisa itu ini dan
    làm thế nào gì là ai đâu sao bao nhiêu có không của tôi cho và được khi để mua
    paano ano sino saan kailan bakit ilan ang mga ng sa ako ko ba hindi
    jinsi nini nani wapi lini ngapi gani kwa ya wa na ni je
    quid quis ubi quando cur quomodo est sunt non
    """.split()
    ).union(*(words for name, words in LANGUAGE_WORDS.items() if name != "en"))
    - _SHARED
    - _ENGLISH
)


def foreign(text: str, tokens: tuple[str, ...]) -> bool:
    """Whether a text is in another language than English; `tokens` are its words in lower case."""
    if not text.isascii() and _mostly_other_letters(text[: 10 * _READ]):
        return True
    head = tokens[:_READ]
    english = len(_ENGLISH.intersection(head)) + (head[:1] == ("is",))
    elsewhere = len(_ELSEWHERE.intersection(head))
    if english and english >= elsewhere:
        return False
    strange = sum(token.isalpha() and len(token) > 1 and _strange(token) for token in head)
    words = sum(token.isalpha() for token in head)
    if elsewhere > english and (elsewhere > 1 or 2 * strange >= words):
        return True
    if english or not strange:
        return False
    return strange == words > 1 if words < _FEWEST else (strange + elsewhere) * 2 >= words


def _strange(token: str) -> bool:
    return not (token in STOP or lexicon.known(token) or lexicon.known(lexicon.lemma(token)))


def other_letter(letter: str) -> bool:
    """Whether this is a letter of another script than Latin."""
    return letter >= "\u0370" and letter.isalpha() and ord(letter) not in _LATIN_MORE


def _mostly_other_letters(text: str) -> bool:
    letters = sum(map(str.isalpha, text))
    return 2 * sum(map(other_letter, text)) > letters > 0


def unreadable(words: Iterable[str]) -> bool:
    """Whether one of these words has a letter of another script, of which the verifier knows nothing."""
    return any(not word.isascii() and any(map(other_letter, word)) for word in words)
