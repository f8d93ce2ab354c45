"""What each rule of the verifier forbids, and the paraphrases that look like a contradiction and are none."""

from __future__ import annotations

import pytest

from cacheproxy.verify.reading import read
from cacheproxy.verify.rules import RULES, rule_values
from cacheproxy.verify.vetoes import vetoed

_FORBIDDEN = {
    "number": """
        What are the top 5 ways to save money? | What are the top 10 ways to save money?
        How do I run a 5 km race? | How do I run a 10 km race?
        Is a $50 deposit enough for the rental? | Is a $75 deposit enough for the rental?
        How many calories are in two eggs? | How many calories are in three eggs?
        Can I return shoes within 30 days? | Can I return shoes within fourteen days?
        What is 15% of 240? | What is 20% of 240?
        Which is the largest city in Brazil? | Which is the second largest city in Brazil?
        Who was the 16th president of America? | Who was the 12th president of America?
        How do I split a bill between 4 people? | How do I split a bill between 6 people?
        Write a 100 word summary of this article | Write a 1,000 word summary of this article
        Can I carry 100 ml of perfume on the plane? | Can I carry 200 ml of perfume on the plane?
        How do I save half of my salary? | How do I save 30 percent of my salary?
        """,
    "unit": """
        How do I lose 5 kg before summer? | How do I lose 5 pounds before summer?
        What is the monthly fee of the account? | What is the annual fee of the account?
        How much water should I drink per day? | How much water should I drink per week?
        Can I park here for 2 hours? | Can I park here for 2 days?
        How far is 10 km on foot? | How far is 10 miles on foot?
        Is 20 dollars enough for lunch in Oslo? | Is 20 euros enough for lunch in Oslo?
        Does the plan have 100 MB of storage? | Does the plan have 100 GB of storage?
        Show the weekly sales report | Show the daily sales report
        How many cups are in 3 liters? | How many cups are in 3 gallons?
        Set the timeout to 30 seconds | Set the timeout to 30 minutes
        What do I earn at 20 euros an hour? | What do I earn at 20 euros a day?
        Is a 6 month warranty included? | Is a 6 year warranty included?
        """,
    "date": """
        Who won the world cup in 2014? | Who won the world cup in 2018?
        What is the weather in Rome in May? | What is the weather in Rome in November?
        Is the shop open on Sunday? | Is the shop open on Monday?
        Wake me up at 7am | Wake me up at 7pm
        Book a table for 19:00 | Book a table for 20:00
        What happened on 4 July? | What happened on 14 July?
        Is the museum open today? | Is the museum open tomorrow?
        What were the sales last year? | What were the sales last month?
        When is Easter in 2025? | When is Easter in 2026?
        Schedule the meeting on 2024-03-01 | Schedule the meeting on 2024-04-01
        Best songs of the 1980s | Best songs of the 1990s
        Does the train leave at 6:15 pm? | Does the train leave at 6:45 pm?
        """,
    "version": """
        How do I install Python 3.11? | How do I install Python 3.12?
        What is new in iOS 17? | What is new in iOS 16?
        How do I reset an iPhone 13? | How do I reset an iPhone 14?
        What changed in release 2.4.1? | What changed in release 2.5.0?
        Is Windows 10 still supported? | Is Windows 11 still supported?
        How do I upgrade to Node 18? | How do I upgrade to Node 20?
        Does Java 8 have records? | Does Java 17 have records?
        Is TLS 1.2 secure? | Is TLS 1.3 secure?
        Download Ubuntu 22.04 | Download Ubuntu 24.04
        How do I migrate to Angular 15? | How do I migrate to Angular 17?
        Is PHP 7.4 end of life? | Is PHP 8.1 end of life?
        How fast is USB 2.0? | How fast is USB 3.0?
        """,
    "negation": """
        Can I withdraw cash with this card? | Can I not withdraw cash with this card?
        Which foods contain gluten? | Which foods do not contain gluten?
        Is it legal to park here? | Is it illegal to park here?
        Which employees have signed the form? | Which employees haven't signed the form?
        What happens if I pay the fine? | What happens if I don't pay the fine?
        Are these tickets refundable? | Are these tickets non-refundable?
        How do I bake bread with yeast? | How do I bake bread without yeast?
        Why does my phone ring? | Why does my phone never ring?
        Who has access to the file? | Who has no access to the file?
        Why is my laptop charging? | Why isn't my laptop charging?
        Is the water in the lake safe to drink? | Is the water in the lake not safe to drink?
        Is that behavior ethical? | Is that behavior unethical?
        """,
    "antonym": """
        What is the maximum dose of ibuprofen? | What is the usual dose of ibuprofen?
        How do I truncate a table in MySQL? | How do I drop a table in MySQL?
        Which chemical reactions release heat? | Which chemical reactions absorb heat?
        Is the free version of it enough? | Is the paid version of it enough?
        How do I enable two factor authentication? | How do I disable two factor authentication?
        Turn on the kitchen lights | Turn off the kitchen lights
        How do I opt in to emails? | How do I opt out of emails?
        How do I upload a photo to my profile? | How do I download a photo from my profile?
        Are dogs allowed in the park? | Are dogs banned in the park?
        How do I lock my phone screen? | How do I unlock my phone screen?
        What are the advantages of nuclear power? | What are the disadvantages of nuclear power?
        How do I increase my screen brightness? | How do I decrease my screen brightness?
        Sort the list in ascending order | Sort the list in descending order
        What is the maximum age of a driver? | What is the minimum age of a driver?
        How do I install the desktop client? | How do I uninstall the desktop client?
        What is the cheapest phone on the market? | What is the expensive phone on the market?
        How do I encrypt a file with gpg? | How do I decrypt a file with gpg?
        Why is inflation rising in Europe? | Why is inflation falling in Europe?
        """,
    "direction": """
        Transfer 100 euros from savings to checking | Transfer 100 euros from checking to savings
        How do I fly from Paris to London? | How do I fly from London to Paris?
        Translate this text from German to English | Translate this text from English to German
        Move the files from Dropbox to my laptop | Move the files from my laptop to Dropbox
        How do I migrate data from MySQL to Postgres? | How do I migrate data from Postgres to MySQL?
        Send the invoice from Anna to Peter | Send the invoice from Peter to Anna
        Is the bus from the airport to downtown free? | Is the bus from downtown to the airport free?
        Convert a word document to pdf | Convert a pdf to a word document
        Are cats smarter than dogs? | Are dogs smarter than cats?
        How do I switch from Android to iPhone? | How do I switch from iPhone to Android?
        What does a taxi from Kyoto to Osaka cost? | What does a taxi from Osaka to Kyoto cost?
        Copy the settings from staging into production | Copy the settings from production into staging
        """,
    "order": """
        Does smoking cause stress? | Does stress cause smoking?
        Can a dog bite a cat? | Can a cat bite a dog?
        What do Croats think of Turks? | What do Turks think of Croats?
        What percentage of lawyers are women? | What percentage of women are lawyers?
        Did Google buy Motorola? | Did Motorola buy Google?
        Why do teachers fear parents? | Why do parents fear teachers?
        What did Anna say about Peter? | What did Peter say about Anna?
        Does my landlord owe my roommate money? | Does my roommate owe my landlord money?
        Write a letter about my boss for my wife | Write a letter about my wife for my boss
        Does rain follow wind? | Does wind follow rain?
        Is poverty a result of crime? | Is crime a result of poverty?
        How did Rome influence Greece? | How did Greece influence Rome?
        """,
    "language": """
        How do I reset my password? | Wie kann ich mein Passwort zurücksetzen?
        What is the capital of France? | Quelle est la capitale de la France et pourquoi ?
        Where is the station? What is the way to it? | ¿Dónde está la estación y cómo puedo llegar?
        What is the weather in the city? | Как сегодня погода в городе?
        How can I learn to cook? | どうすれば料理を学べますか?
        What is the meaning of this word? | 这个词是什么意思?
        How do I open an account? | كيف أفتح حسابا؟
        What is the price of the ticket? | 티켓 가격은 얼마입니까?
        Who is the president of the country? | Wer ist der Präsident und wo kann man ihn treffen?
        What can I do for my back? | Che cosa posso fare per la mia schiena e perché?
        When is the best time to visit? | Quando é o melhor para visitar e como posso ir? É uma boa?
        Why is the sky blue? | Γιατί είναι μπλε;
        """,
    "code": """
        What does os.path.join do? | What does os.path.exists do?
        What does `git rebase` do to my branch? | What does `git merge` do to my branch?
        How do I use the --force flag? | How do I use the --dry-run flag?
        Explain the function parse_args() | Explain the function parse_date()
        What is stored in /etc/hosts? | What is stored in /etc/passwd?
        What does getElementById return? | What does querySelector return?
        Why is config.yaml not loaded at start? | Why is settings.yaml not loaded at start?
        Summarize https://example.com/a for me | Summarize https://example.com/b for me
        How do I mock requests.get in a test? | How do I mock requests.post in a test?
        What does std::move do? | What does std::copy do?
        Is max_depth a parameter of the model? | Is max_iter a parameter of the model?
        How do I edit package.json by hand? | How do I edit tsconfig.json by hand?
        """,
    "region": """
        Do I need a visa for Germany? | Do I need a visa for France?
        What is the tax rate for American citizens? | What is the tax rate for British citizens?
        Who is the president of Brazil? | Who is the president of Chile?
        What is the currency of Sweden? | What is the currency of Norway?
        What is the minimum wage in the US? | What is the minimum wage in Canada?
        How do I register a company in India? | How do I register a company in Pakistan?
        Is the shop delivering to Austria? | Is the shop delivering to Australia?
        What is the capital of South Korea? | What is the capital of North Korea?
        Which plug fits Italian sockets? | Which plug fits Swiss sockets?
        What is the legal drinking age in Japan? | What is the legal drinking age in China?
        How do I call a number in Mexico? | How do I call a number in Spain?
        Which holidays do Dutch schools have? | Which holidays do Polish schools have?
        """,
    "qualifier": """
        Get the last element of a list in Python | Get the first element of a list in Python
        Do children under six travel free on city buses? | Do children over six travel free on city buses?
        Make the paragraph sound more formal | Make the paragraph sound less formal
        Who was Mandela's second wife? | Who was Mandela's first wife?
        Can I block the caller permanently? | Can I block the caller temporarily?
        What is the latest book of the author? | What is the oldest book of the author?
        Do most employees work at least two days at home? | Do most employees work at most two days at home?
        When does the next tram to the station leave? | When does the previous tram to the station leave?
        Who always pays the rent on time? | Who sometimes pays the rent on time?
        Select all rows from the table orders | Select some rows from the table orders
        Delete only the current tab in the browser | Delete all tabs except the current tab in the browser
        Show me the current address of the firm | Show me the previous address of the firm
        """,
}
_SAME = """
    I can't log in to my account | I am unable to log in to my account
    I can't log in to my account | Login to my account fails
    How do I stop notifications? | How do I turn off notifications?
    What are the top five ways to save money? | Top 5 ways of saving money
    How do I lose 10 kg in three months? | How can I lose 10 kilos in 3 months?
    Wake me up at 7 pm | Wake me up at 19:00
    Is 1,000 dollars enough? | Is $1k enough?
    How long is 60 minutes of training? | How long is 1 hour of training?
    Who was the 2nd man on the moon? | Who was the second man on the moon?
    What happened on March 3, 2021? | What happened on 3 March 2021?
    What is half of the price? | What is 50% of the price?
    How do I install python 3.11 on a Mac? | Installing Python 3.11 on Mac
    How is an iPhone 13 reset? | How do I reset my iPhone 13?
    Isn't Paris the capital of France? | Is Paris the capital of France?
    I don't know how to cook rice | How do I cook rice?
    Can you tell me whether or not the shop is open? | Is the shop open?
    Is it impossible to learn Latin? | Is it not possible to learn Latin?
    Is this product not expensive? | Is this product inexpensive?
    Why is it not allowed to feed pigeons? | Why is feeding pigeons banned?
    Where can I park in Paris? | In Paris, where can I park?
    Difference between tea and coffee | Difference between coffee and tea
    How far is it from Rome to Milan? | How far is it from Milan to Rome?
    Is it better to rent or buy? | Is it better to buy or rent?
    What is the difference between an increase and a decrease? | How do an increase and a decrease differ?
    How do I get from the airport to the city? | How can I reach the city from the airport?
    How does `git rebase` work? | git rebase: how does it work?
    What does MEMORY_MANAGEMENT mean? | memory_management meaning
    Which employees haven't signed? | Which employees have not signed?
    My phone won't turn on | My phone does not turn on
    How do I cancel my subscription? | I want to cancel my subscription, how?
    Please turn the lights off | Turn off the lights
    How do I choose a color for the wall? | How do I choose a colour for the wall?
    How often should I water it per day? | How often should I water it each day?
    How do I log out everywhere? | How do I sign out everywhere?
    Best way to learn the guitar | What's the best way of learning guitar?
    how do I chnage my password | How do I change my password?
    Neither of my cards works, why? | Why doesn't either of my cards work?
    What is the population of Germany? | What is the German population?
    Who leads the UK? | Who leads the United Kingdom?
    Do I need a visa for the U.S.? | Do I need a visa for the US?
    No, I need help with my bill | I need help with my bill
    Is tap water safe to drink? Why or why not? | Is tap water safe to drink?
    Are Gmail and Outlook the same? | Are Outlook and Gmail the same?
    How do I remove the background? | How do I get rid of the background?
"""


def _rows(table: str) -> list[tuple[str, str]]:
    pairs = [line.split(" | ") for line in table.strip().splitlines()]
    return [(left.strip(), right.strip()) for left, right in pairs]


_CONTRARY = [(name, *pair) for name, table in _FORBIDDEN.items() for pair in _rows(table)]


@pytest.mark.parametrize(("name", "asked", "kept"), _CONTRARY)
def test_a_contradiction_is_forbidden(name: str, asked: str, kept: str) -> None:
    assert vetoed(read(asked), read(kept)), f"{name} let it pass"
    assert vetoed(read(kept), read(asked)), f"{name} let it pass the other way round"


@pytest.mark.parametrize("name", _FORBIDDEN)
def test_most_contradictions_are_named_by_their_own_rule(name: str) -> None:
    rule = next(rule for rule in RULES if rule.name == name)
    rows = _rows(_FORBIDDEN[name])
    assert len(rows) >= 12
    assert sum(rule(read(asked), read(kept)) >= 1.0 for asked, kept in rows) >= 0.75 * len(rows)


@pytest.mark.parametrize(("asked", "kept"), _rows(_SAME))
def test_the_same_question_in_other_words_is_not_forbidden(asked: str, kept: str) -> None:
    assert vetoed(read(asked), read(kept)) == ""
    assert vetoed(read(kept), read(asked)) == ""


@pytest.mark.parametrize("text", [text for _, left, right in _CONTRARY for text in (left, right)])
def test_equal_texts_are_never_forbidden(text: str) -> None:
    assert vetoed(read(text), read(text)) == ""


_FEATURES = [
    ("identifier", "What is the pinout of the NE555?", "What is the pinout of the LM741?"),
    ("identifier", "How do you say 'train' in German?", "How do you say 'train' in German for A2?"),
    ("entity", "How do I delete my Facebook account?", "How do I delete my Instagram account?"),
    ("entity", "Where was Einstein born?", "Where was Newton born?"),
    ("question", "When was the bridge built?", "Why was the bridge built?"),
    ("question", "How much does a passport cost?", "Where do I get a passport?"),
    ("tense", "Who was the mayor of Lyon?", "Who will be the mayor of Lyon?"),
    ("rival", "Is this card a credit card or what?", "Is this card a prepaid card or what?"),
    ("rival", "How do I open a file in Chrome?", "How do I open a file in Firefox?"),
    ("rest", "How do I bake a cake?", "Which lawyer handles divorces?"),
    ("swap", "How do I paint a wooden chair?", "How do I paint a wooden fence?"),
    ("scope", "How do I renew my passport?", "How do I renew my passport abroad by mail?"),
    ("person", "Can I cancel my policy?", "Can you cancel my policy?"),
]


@pytest.mark.parametrize(("name", "asked", "kept"), _FEATURES)
def test_a_feature_rises_where_the_questions_differ(name: str, asked: str, kept: str) -> None:
    at = [rule.name for rule in RULES].index(name)
    assert rule_values(read(asked), read(kept))[at] >= 0.5
    assert rule_values(read(asked), read(asked))[at] == 0.0


def test_the_order_of_rules_is_part_of_every_artefact() -> None:
    assert ", ".join(rule.name for rule in RULES) == (
        "number, unit, date, version, negation, antonym, direction, order, language, code, identifier, entity, region, "
        "qualifier, question, tense, rival, rest, swap, scope, person"
    )
    assert ", ".join(rule.name for rule in RULES if rule.veto) == (
        "number, unit, date, version, negation, antonym, direction, order, language, code, region, qualifier"
    )
