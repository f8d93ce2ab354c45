"""What each check beside the rules forbids, and the askings of one question that only look like it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.verify.foreign import foreign
from cacheproxy.verify.reading import read
from cacheproxy.verify.vetoes import CHECKS, vetoed

_FORBIDDEN = {
    "foreign": """
        ¿Cómo activar el modo oscuro? | ¿Cómo desactivar el modo oscuro?
        Wie kann ich mein Konto löschen? | Wie kann ich mein Konto nicht löschen?
        Comment acheter une maison ? | Comment vendre une maison ?
        Come si accende il computer? | Come si spegne il computer?
        Como comprar uma casa? | Como vender uma casa?
        Hoe open ik het bestand? | Hoe sluit ik het bestand?
        Jak włączyć tryb ciemny? | Jak wyłączyć tryb ciemny?
        Hur köper jag aktier? | Hur säljer jag aktier?
        Miten ostan osakkeita? | Miten myyn osakkeita?
        Bagaimana cara menurunkan berat badan? | Bagaimana cara menaikkan berat badan?
        Làm thế nào để mua nhà? | Làm thế nào để bán nhà?
        Aktien kaufen | Aktien verkaufen
        Как купить акции? | Как продать акции?
        怎么增肥? | 怎么减肥?
        血圧を下げる方法は? | 血圧を上げる方法は?
        كيف أشتري أسهم؟ | كيف أبيع أسهم؟
        Πώς ανοίγω το αρχείο; | Πώς κλείνω το αρχείο;
        What does the word да mean? | What does the word нет mean?
        """,
    "letters": """
        What does curl -O do? | What does curl -o do?
        How does curl -O work? | What does curl -o do?
        What is the difference between tar -c and tar -x? | What is the difference between tar -C and tar -x?
        What does \\d match? | What does \\D match?
        What does \\w+ match in a regex? | In a regex, what is \\W+ for?
        What does %m mean in strftime? | What does %M mean in strftime?
        what does %m mean in strftime | What does %M mean in strftime?
        What does chmod +x do? | What does chmod +X do?
        How much is 5 mW in watts? | How much is 5 MW in watts?
        How many MB are in 1 Gb? | How many Mb are in 1 GB?
        how many mm in 5 Mm | how many Mm in 5 mm
        What is the chemical CO? | What is the chemical Co?
        What does polish mean? | What does Polish mean?
        Where does the turkey come from? | Where does the Turkey come from?
        Is the variable Foo the same as foo in Go? | Is the variable foo the same as foo in Go?
        Is my password hunter2 strong? I mean huntER2 | Is my password HUNTER2 strong? I mean hunter2
        Decode this: aGVsbG8gd29ybGQ= | Decode this: AGVSBG8GD29YBGQ=
        decode this: aGVsbG8gd29ybGQ= | decode this: agvsbg8gd29ybgq=
        How do I write the file ReadMe.md? | how do i write the file README.md?
        Is 'iPhone' written right? | Is 'IPhone' written right?
        what does getElementById do | what does getelementbyid do
        Capitalise this: hello World | Capitalise this: Hello world
        In vim what does P do? | In vim what does p do?
        """,
    "spacing": """
        fix: if a:⏎    b()⏎    c() | fix: if a:⏎    b()⏎c()
        Is this YAML right?⏎a:⏎  b: 1⏎  c: 2 | Is this YAML right?⏎a:⏎  b: 1⏎c: 2
        What does this print?⏎for i in x:⏎    pass⏎    print(i) | What does this print?⏎for i in x:⏎    pass⏎print(i)
        What does it print?⏎while x:⏎→pass⏎→print(x) | What does it print?⏎while x:⏎→pass⏎print(x)
        How many lines: a⏎b | How many lines: a b
        Sort these:⏎pear apple⏎plum | Sort these:⏎pear⏎apple plum
        How many spaces are in 'a  b'? | How many spaces are in 'a b'?
        What is the length of "x   y"? | What is the length of "x y"?
        Does `cut -d '  '` work? | Does `cut -d ' '` work?
        Is this a list?⏎- a⏎  - b | Is this a list?⏎- a⏎- b
        Why does make fail?⏎all:⏎→echo | Why does make fail?⏎all:⏎echo
        Read this poem:⏎so much⏎depends⏎upon | Read this poem:⏎so much depends⏎upon
        """,
    "operator": """
        How do I use == in JavaScript? | How do I use === in JavaScript?
        What does // do in Python? | What does / do in Python?
        Is a > b when a = b + 1? | Is a < b when a = b + 1?
        Solve x^2 = 4 for x > 0 | Solve x^2 = 4 for x < 0
        What is the result of 5 > 3 ? 1 : 0 | What is the result of 5 < 3 ? 1 : 0
        What is (-3)^2? | What is -3^2?
        Fix: SELECT * FROM a LEFT JOIN b | Fix: SELECT * FROM b LEFT JOIN a
        What is 8*2? | What is 8/2?
        Why is `if x >= 10` never true? | Why is `if x <= 10` never true?
        Why does it loop?⏎while n < 10:⏎    n += 1 | Why does it loop?⏎while n < 10:⏎    n -= 1
        What does x && y return? | What does x || y return?
        What is 2 * (3 + 4)? | What is (2 * 3) + 4?
        Does a = b change b? | Does b = a change b?
        What is the root of -9? | What is the root of 9?
        """,
    "measure": """
        How much is 20 mcg of vitamin D? | How much is 20 mg of vitamin D?
        Is 250 µg of levothyroxine a lot? | Is 250 mg of levothyroxine a lot?
        Can I take 50 micrograms of it? | Can I take 50 milligrams of it?
        What is 37 C in fahrenheit? | What is 37 F in celsius?
        Is 300 K hot? | Is 300 °C hot?
        Is 40 degrees Celsius a fever? | Is 40 degrees Fahrenheit a fever?
        Does a 5 mW laser hurt? | Is a 5 MW laser harmful?
        Is a 100 Mb line fast? | Is a 100 MB line fast?
        Summarise Hamlet in one sentence | Summarise Hamlet in one paragraph
        Write an essay in 5 words | Write an essay in 5 pages
        Is 1000 IU of vitamin D enough? | Is 1000 mg of vitamin D enough?
        How heavy is 3 ng? | How heavy is 3 g?
        """,
    "accent": """
        What does año mean in English? | What does ano mean in English?
        What does papá mean in Spanish? | What does papa mean in Spanish?
        Is sí a word? | Is si a word?
        What does pêche mean in French? | What does péché mean in French?
        How do I pronounce schön? | How do I pronounce schon?
        Is résumé a verb? | Is resume a verb?
        What is the plural of más? | What is the plural of mas?
        What does sûr mean? | What does sur mean?
        What does esté mean? | What does este mean?
        What is a maté? | What is a mate?
        What does tú mean? | What does tu mean?
        What does łaska mean? | What does laska mean?
        """,
    "name": """
        What are side effects of Celebrex? | What are side effects of Celexa?
        What is the dose of prednisone? | What is the dose of prednisolone?
        What is the dose of Lamictal? | What is the dose of Lamisil?
        Side effects of vinblastine | Side effects of vincristine
        Is sodium nitrate bad? | Is sodium nitrite bad?
        What is potassium chlorate? | What is potassium chloride?
        Is copper sulfate toxic? | Is copper sulfide toxic?
        What is bupropion for? | What is buprenorfin for?
        Is clonazepam safe? | Is clozapinol safe?
        What does Tradjenta treat? | What does Tramacet treat?
        What are side effects of Zyrtec? | What are side effects of Zyprexa?
        Where is Brnabice? | Where is Brnovinky?
        """,
    "other_name": """
        Do you repair bicycles in Graz? | Do you repair bicycles in Bilbao?
        Is there a shop in Leeds? | Is there a shop in Bergen?
        When was Wembanyama born? | When was Doncic born?
        Does Xiaomi make tablets? | Does Lenovo make tablets?
        How tall is Wembanyama? | How tall is Jokic?
        How do I cancel my Netflix subscription? | How do I cancel my Spotify subscription?
        How do I play Minecraft? | How do I play Fortnite?
        How do I deploy to Heroku? | How do I deploy to Vercel?
        Who directed Zootopia? | Who directed Moonrise?
        Does Ryanair charge for bags? | Does Lufthansa charge for bags?
        How long is the flight to Katowice? | How long is the flight to Bergen?
        Is Grafana free? | Is Splunk free?
        """,
    "term": """
        What is the radius of the earth? | What is the diameter of the earth?
        How do I calculate the gcd of two numbers? | How do I calculate the lcm of two numbers?
        What is a normal systolic blood pressure? | What is a normal diastolic blood pressure?
        How many micrograms of vitamin D should I take? | How many milligrams of vitamin D should I take?
        Is the sum of two squares odd? | Is the sum of two squares even?
        What is the median of a sample? | What is the mode of a sample?
        Can I trademark a recipe? | Can I copyright a recipe?
        What is the variance of a sum? | What is the covariance of a sum?
        What is the sine of thirty degrees? | What is the cosine of thirty degrees?
        How does mitosis work? | How does meiosis work?
        Is this number prime? | Is this number composite?
        What does an artery do? | What does a vein do?
        Is theft a felony in Texas? | Is theft a misdemeanor in Texas?
        What must the appellant prove? | What must the respondent prove?
        """,
    "roman": """
        When did World War I end? | When did World War II end?
        How many people died in WWI? | How many people died in WWII?
        Who was Louis XIV? | Who was Louis XVI?
        What did Henry VIII do? | What did Henry VII do?
        Is Civilization V good? | Is Civilization VI good?
        Who won Super Bowl III? | Who won Super Bowl IV?
        What is Type I error? | What is Type II error?
        When did Rocky II come out? | When did Rocky III come out?
        What is Article V about? | What is Article II about?
        Who was Pope Pius IX? | Who was Pope Pius XI?
        Is Diablo II free? | Is Diablo III free?
        How long is Part I? | How long is Part II?
        """,
    "roles": """
        Who does Batman fight? | Who fights Batman?
        What eats rabbits? | What do rabbits eat?
        What does a lion hunt? | What hunts a lion?
        Who did Brutus kill? | Who killed Brutus?
        Who taught Plato? | Who did Plato teach?
        Who sponsors Ferrari? | Who does Ferrari sponsor?
        Which country did Russia invade? | Which country invaded Russia?
        Which company did Google buy? | Which company bought Google?
        Who beat Germany in the final? | Who did Germany beat in the final?
        What causes inflation? | What does inflation cause?
        What does my landlord owe me? | What do I owe my landlord?
        Can my boss sue me? | Can I sue my boss?
        Whom did Hamlet love? | Who loved Hamlet?
        """,
}
_SAME = """
    How do I revert a commit on Github? | How do I revert a commit on GitHub?
    how do I use github? | How do I use GitHub?
    Is Tiktok banned? | Is TikTok banned?
    How do I cancel Paypal? | How do I cancel PayPal?
    How many pounds is 70 kg? | How many lbs is 70 kilograms?
    How many ounces are in a lb? | How many oz are in a pound?
    What is the gcd of 12 and 18? | What is the gcf of 12 and 18?
    Which skills are key? | Which skills are of value?
    What is the price of Bitcoin? | What is the price of BTC?
    Is there a cure for AIDS? | Is there a cure for HIV?
    What should I do in NYC? | What should I do in Manhattan?
    How do I contact Customer Support? | How do I contact Customer Service?
    What does sport mode do? | What does sport mean?
    how do i reset my password | How do I reset my password?
    HOW DO I RESET MY PASSWORD? | How do I reset my password?
    How do I install Homebrew on a Mac? | How do I install homebrew on a mac?
    When did the Berlin Wall fall? | When did the berlin wall fall
    How To Reset My Password | How to reset my password
    how do i reset my iphone | How do I reset my iPhone?
    what is the gdp of india | What is the GDP of India?
    Who is the president of india? | Who is the president of India?
    is a ps4 worth it | Is a PS4 worth it?
    wake me up at 10AM | Wake me up at 10am
    How do I do a + b in C++? | how do i do a + b in c++
    What does MAX_DEPTH mean? | max_depth meaning
    I lost my card. What now? | I lost my card. what now?
    Dear team, my card is lost.⏎What should I do now? | Dear team, my card is lost. What should I do now?
    How do I  reset it? | How do I reset it?
    Is it ok to say "hello there"? | Is it ok to say “hello there”?
    How do I make a café au lait? | How do I make a cafe au lait?
    How old is Beyoncé? | How old is Beyonce?
    What is the weather in São Paulo? | What is the weather in Sao Paulo?
    What is 8 + 2? | What is 8+2?
    What is 8 + 2? | What is 8 plus 2?
    Is it black and/or white? | Is it black and or white?
    Is tea - or coffee - better? | Is tea, or coffee, better?
    How do I use the --force flag? | What is the --force flag for?
    How much is 20 mcg of vitamin D? | How much is 20 micrograms of vitamin D?
    Is 37 °C a fever? | Is 37 degrees Celsius a fever?
    Summarise Hamlet in one sentence | Summarize Hamlet in a sentence
    How do I recieve money? | How do I receive money?
    Is my accomodation paid? | Is my accommodation paid?
    What is the height of Mount Kilimanjaro? | What is the height of Mount Kilimanjro?
    Who is Zuckerberg? | Who is Zukerberg?
    How do I install kubernetes? | How do I install kubernetis?
    Who painted the Mona Lisa? | The Mona Lisa was painted by whom?
    What makes people happy? | What is it that makes people happy?
    What does Batman fight for? | What is Batman fighting for?
    Who won the Oscar in 2014? | Who did win the Oscar in 2014?
    Can you help me if I lose my card? | I lost my card, can you help me?
    Who is Lionel Messi? | who's lionel messi
    Wie kann ich mein Konto löschen? | wie kann ich mein konto löschen
    Как купить акции? | Как купить акции
    reset password | password reset
"""


def _rows(table: str) -> list[tuple[str, str]]:
    lines = [line.strip().replace("⏎", "\n").replace("→", "\t") for line in table.strip().splitlines()]
    return [(left, right) for left, _, right in (line.partition(" | ") for line in lines)]


_CONTRARY = [(name, *pair) for name, table in _FORBIDDEN.items() for pair in _rows(table)]


@pytest.mark.parametrize(("name", "asked", "kept"), _CONTRARY)
def test_what_the_signs_tell_apart_is_forbidden(name: str, asked: str, kept: str) -> None:
    assert vetoed(read(asked), read(kept)), f"{name} let it pass"
    assert vetoed(read(kept), read(asked)), f"{name} let it pass the other way round"


@pytest.mark.parametrize("name", _FORBIDDEN)
def test_most_are_named_by_their_own_check(name: str) -> None:
    check = next(check for check in CHECKS if check.name == name)
    rows = _rows(_FORBIDDEN[name])
    assert len(rows) >= 12
    assert sum(check(read(asked), read(kept)) for asked, kept in rows) >= 0.75 * len(rows)


@pytest.mark.parametrize(("asked", "kept"), _rows(_SAME))
def test_the_same_question_typed_otherwise_is_not_forbidden(asked: str, kept: str) -> None:
    assert vetoed(read(asked), read(kept)) == ""
    assert vetoed(read(kept), read(asked)) == ""


@pytest.mark.parametrize("text", [text for _, left, right in _CONTRARY for text in (left, right)])
def test_equal_texts_are_never_forbidden(text: str) -> None:
    assert vetoed(read(text), read(text)) == ""
    assert vetoed(read(text), read(text + " ")) == ""


def test_what_differs_far_inside_a_long_text_is_seen() -> None:
    around = "The quick brown fox jumps over the lazy dog. " * 120
    assert vetoed(read(f"{around} if x < 3 {around}"), read(f"{around} if x > 3 {around}")) == "operator"
    assert vetoed(read(f"{around} run tar -c {around}"), read(f"{around} run tar -C {around}")) == "letters"


@pytest.mark.parametrize(
    "text",
    """What is the capital of France? | reset password | Who is Lionel Messi? | Donald Trump or Hillary Clinton?
    Is Elon Musk from South Africa? | How do I install kubernetes and nginx? | cancel my order | pay | Thanks!
    What does the French word bonjour mean? | Where is Los Angeles? | Is Van Gogh in the Louvre? | Visa for El Salvador
    mac wifi slow | Should I buy the Surface Pro 3? | What is the difference between la and le in French?
    """.replace("\n", "|").split("|"),
)
def test_english_is_not_foreign(text: str) -> None:
    assert not foreign(text, read(text).tokens)


@pytest.mark.parametrize(
    "piece", ["1", "1,", "1%", "/a", "-", "'", '"a', "(", "\n ", "a=", "x-1 ", "<a", "é", "1 mg ", "`", "Aa ", "ж"]
)
def test_a_text_of_100_kb_is_compared_in_bounded_time(piece: str) -> None:
    asked, kept = piece * (100_000 // len(piece)), piece * (99_000 // len(piece)) + "z"
    vetoed(read("1 mg"), read("2 mg"))
    before = time.process_time()
    one, other = read(asked), read(kept)
    for check in CHECKS:
        check(one, other)
        check(one, read(asked.upper()))
    assert time.process_time() - before < 2.0


@given(st.text(max_size=200), st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_two_texts_get_the_same_word_both_ways(one: str, other: str) -> None:
    asked, kept = read(one), read(other)
    for check in CHECKS:
        assert check(asked, kept) == check(kept, asked)
        assert not check(asked, read(one))


_SAMPLE = """who what does do fights fight batman -o -O mW 5 5mcg mg 37 C F año ano < > = ( ) foo Foo löschen"""
_PIECES = [*_SAMPLE.split(), "\n"]


@given(st.lists(st.sampled_from(_PIECES), max_size=10), st.lists(st.sampled_from(_PIECES), max_size=10))
@settings(max_examples=400, deadline=None)
def test_who_asks_makes_no_difference(one: list[str], other: list[str]) -> None:
    asked, kept = read(" ".join(one)), read(" ".join(other))
    assert [check(asked, kept) for check in CHECKS] == [check(kept, asked) for check in CHECKS]
