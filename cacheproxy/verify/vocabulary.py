"""The closed word classes of questions that the rules read: stop words, negators, qualifiers, units, months.

What is open (opposites, synonyms, kinds) is the lexicon's. English; of other languages only enough to tell which one a
text is in.
"""

from __future__ import annotations

STOP = frozenset(
    """a an the this that these those there here it its i me my mine myself we us our ours you your yours he him
    his she her hers they them their theirs
    one ones someone somebody something anyone anybody anything everyone thing things people person way ways is
    are was were am be been being do does did
    doing done have has had having will would shall should can could may might must ought need to of in on at by
    for from with about into onto upon as
    and or but if so than then too very just also well still even yet really actually simply please kindly thanks
    thank hello hi hey dear what which who
    whom whose how why when where whether how's let lets s t d ll re ve m tell explain describe give show know
    want like wonder wondering help get got
    getting make makes making use using used go going come exactly quick quickly question answer mean means meant
    some any such much many lot lots
    possible able someone's etc e.g i.e okay ok currently able-to via per each every during while because since
    through between up out off down over
    over again back say says said see look think find out work works step steps best good better right
    proper""".split()
) - {
    "between",
    "off",
    "down",
    "over",
    "out",
    "up",
    "back",
    "again",
    "since",
    "through",
    "best",
    "good",
    "better",
    "right",
    "during",
    "while",
}

FUNCTION = frozenset(
    """a an the to of in on at by for from with about into onto and or but if than as is are was were be been do
    does did have has had will would can could
    should may might must i me my we us our you your he she it they them his her its their this that these those
    there what which who how why when where
    not no so s please""".split()
)
"""Words that carry no content at all, wherever they stand."""

CONTRACTIONS: dict[str, tuple[str, ...]] = {
    "can't": ("can", "not"), "cannot": ("can", "not"), "cant": ("can", "not"), "won't": ("will", "not"),
    "wont": ("will", "not"),
    "shan't": ("shall", "not"), "ain't": ("is", "not"), "dont": ("do", "not"), "doesnt": ("does", "not"),
    "didnt": ("did", "not"),
    "isnt": ("is", "not"), "arent": ("are", "not"), "wasnt": ("was", "not"), "werent": ("were", "not"),
    "couldnt": ("could", "not"),
    "shouldnt": ("should", "not"), "wouldnt": ("would", "not"), "havent": ("have", "not"), "hasnt": ("has", "not"),
    "hadnt": ("had", "not"),
    "im": ("i", "am"), "ive": ("i", "have"), "whats": ("what", "is"), "hows": ("how", "is"), "wheres": ("where",
    "is"), "whos": ("who", "is"),
    "let's": ("let", "us"), "gonna": ("going", "to"), "wanna": ("want", "to"), "gotta": ("got", "to"),
    "y'all": ("you",), "u": ("you",),
    "ur": ("your",), "r": ("are",), "pls": ("please",), "plz": ("please",), "thx": ("thanks",), "w/o": ("without",),
    "w/": ("with",),
}  # fmt: skip
ENDINGS: dict[str, str] = {"'s": "is", "'re": "are", "'ve": "have", "'ll": "will", "'d": "would", "'m": "am"}
ASKING = frozenset("what who where when how why which whose whom it that there he she this here".split())
"""Words after which 's is a verb; after others it is a possessive."""

PARTICLES = frozenset("on off in out up down over under".split())
PHRASAL = frozenset(
    """turn switch log sign opt check power shut set back sort scale roll zoom speed slow lock swap trade phase
    cut clock bring take put pull push hand
    plug tune move drive fill pay dial""".split()
)
"""Verbs that make another verb with a particle, which then is content: turn off, log out."""

NEGATORS = frozenset("not no never without nor neither none nobody nothing nowhere non sans".split())
WEAK_NEGATORS = frozenset(
    """fail failure refuse stop prevent avoid lack deny decline quit cease rather instead except exclude trouble
    problem issue error difficulty struggle
    hard difficult unless hardly rarely barely scarcely seldom little few miss missing broken break bug wrong
    block forbid ban prohibit keep free less
    minus absent nil zero remove lose cancel disable disallow skip ignore hate dislike worthless useless forget
    forgot hoax same differ difference different versus vs distinguish distinction distinct separate""".split()
)
"""Words that may say by themselves what another text says with a negator: where one is unmatched,
negations do not contradict."""
EMPTY_BEFORE = frozenset(
    """know understand sure remember recall figure tell find see get decide certain clear idea clue think
    familiar""".split()
)
"""After a negator and before a question word these are how people begin: "I don't know how ..."."""

QUALIFIERS: dict[str, str] = {
    "only": "only", "solely": "only", "exclusively": "only", "merely": "only", "except": "except",
    "excluding": "except", "besides": "except",
    "all": "all", "every": "all", "each": "all", "entire": "all", "whole": "all", "everything": "all",
    "everyone": "all", "both": "both",
    "either": "either", "some": "some", "several": "some", "most": "most", "majority": "most", "least": "least",
    "few": "few", "first": "first",
    "last": "last", "final": "last", "next": "next", "previous": "previous", "prior": "previous",
    "former": "previous", "current": "current",
    "latest": "latest", "newest": "latest", "recent": "latest", "oldest": "oldest", "always": "always",
    "never": "never", "sometimes": "sometimes",
    "usually": "usually", "often": "usually", "maximum": "most", "max": "most", "minimum": "least", "min": "least",
    "highest": "most",
    "lowest": "least", "largest": "most", "biggest": "most", "smallest": "least", "best": "most", "worst": "least",
    "more": "more", "less": "less",
    "fewer": "less", "over": "more", "above": "more", "under": "less", "below": "less", "permanently": "permanent",
    "permanent": "permanent",
    "temporarily": "temporary", "temporary": "temporary", "without": "without", "second": "second",
    "third": "third", "another": "other",
    "other": "other", "same": "same", "own": "own", "free": "free", "alone": "only", "unless": "except",
    "until": "until", "before": "before",
    "after": "after", "already": "already", "still": "still", "again": "again", "partial": "some",
    "partially": "some", "fully": "all",
    "completely": "all",
}  # fmt: skip
OPPOSED_QUALIFIERS = frozenset(
    frozenset(pair.split())
    for pair in """only all|only except|all except|all some|all few|most least|most few|first last|next previous
    latest oldest|always sometimes|always never|more less
    permanent temporary|before after|all first|all last|all only|current previous|current next|first second
    first third|second third|own other
    same other""".replace("\n", "|").split("|")
)

MONTHS: dict[str, int] = {
    name: number
    for number, names in enumerate(
        """january jan|february feb|march mar|april apr|may|june jun|july jul|august aug|september sep sept|october
        oct|november nov|december dec""".split("|"),
        1,
    )
    for name in names.split()
}
WEEKDAYS: dict[str, int] = {
    name: number
    for number, names in enumerate(
        """monday mon mondays|tuesday tue tues tuesdays|wednesday wed wednesdays|thursday thu thur thurs
        thursdays|friday fri fridays"""
        "|saturday saturdays|sunday sundays".split("|")
    )
    for name in names.split()
}
SEASONS = frozenset("spring summer autumn winter christmas easter halloween thanksgiving ramadan diwali".split())
RELATIVE_DAYS = frozenset("today tomorrow yesterday tonight now".split())
RELATIVE = frozenset("last next this previous past coming".split())
PERIODS: dict[str, str] = {
    "hourly": "hour", "daily": "day", "weekly": "week", "monthly": "month", "yearly": "year", "annual": "year",
    "annually": "year",
    "nightly": "day", "quarterly": "quarter", "biweekly": "fortnight", "fortnightly": "fortnight",
}  # fmt: skip
SPANS: dict[str, str] = {
    name: base
    for base in "second minute hour day night week weekend month quarter year decade century".split()
    for name in (base, base + "s")
}

SMALL: dict[str, int] = {
    word: number
    for number, word in enumerate(
        """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen eighteen nineteen""".split()
    )
} | {
    word: 10 * number for number, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}
LARGE: dict[str, float] = {
    "hundred": 100,
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "trillion": 1e12,
    "lakh": 1e5,
    "crore": 1e7,
    "dozen": 12,
}
ORDINALS: dict[str, int] = {
    word: number
    for number, word in enumerate(
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(), 1
    )
}
FRACTIONS: dict[str, float] = {"half": 0.5, "twice": 2, "double": 2, "triple": 3, "thrice": 3}

UNITS: dict[str, tuple[str, float]] = {
    name: (family, float(factor))
    for line in """
    byte 1 b byte bytes|byte 1e3 kb kilobyte kilobytes kib|byte 1e6 mb megabyte megabytes mib
    byte 1e9 gb gig gigs gigabyte gigabytes gib
    byte 1e12 tb terabyte terabytes tib|bit 1e3 kbps kbit|bit 1e6 mbps mbit megabit megabits
    bit 1e9 gbps gbit gigabit
    time 1e-3 ms millisecond milliseconds|time 1 s sec secs second seconds|time 60 min mins minute minutes
    time 3600 h hr hrs hour hours
    time 86400 day days|time 604800 week weeks wk wks|time 1209600 fortnight|month 1 month months mo
    month 3 quarter quarters|month 12 year years yr yrs
    month 120 decade decades|month 1200 century centuries
    length 1e-3 mm millimeter millimeters millimetre millimetres
    length 1e-2 cm centimeter centimeters centimetre centimetres
    length 1 m meter meters metre metres|length 1e3 km kilometer kilometers kilometre kilometres
    length 0.0254 inch inches
    length 0.3048 ft foot feet|length 0.9144 yd yard yards|length 1609.344 mi mile miles
    mass 1e-3 mg milligram milligrams|mass 1 g gram grams|mass 1e3 kg kilo kilos kilogram kilograms kgs
    mass 453.592 lb lbs pound-weight
    mass 28.3495 oz ounce ounces|mass 1e6 tonne tonnes|volume 1 l liter liters litre litres
    volume 1e-3 ml milliliter milliliters|volume 3.78541 gallon gallons gal
    volume 0.236588 cup cups|volume 0.0147868 tbsp tablespoon tablespoons|volume 0.00492892 tsp teaspoon teaspoons
    percent 1 percent pct percentage|usd 1 dollar dollars usd bucks buck|eur 1 euro euros eur
    gbp 1 pound pounds gbp quid|jpy 1 yen jpy
    inr 1 rupee rupees inr rs|celsius 1 celsius|fahrenheit 1 fahrenheit|hz 1 hz|hz 1e3 khz|hz 1e6 mhz|hz 1e9 ghz
    watt 1 w watt watts
    watt 1e3 kw kilowatt kilowatts|volt 1 v volt volts|pixel 1 px pixel pixels|cal 1 calorie calories kcal
    speed 1 mph|speed 0.621371 kmh kph
    """.replace("\n", "|").split("|")
    if line.strip()
    for family, factor, *names in [line.split()]
    for name in names
}
"""A unit's name: what it measures, and how many of the family's base units it is."""
CURRENCIES: dict[str, str] = {"$": "usd", "€": "eur", "£": "gbp", "¥": "jpy", "₹": "inr"}
SCALES: dict[str, float] = {"k": 1e3, "m": 1e6, "mn": 1e6, "b": 1e9, "bn": 1e9}

PRODUCTS = frozenset(
    """python java javascript typescript node nodejs php ruby rails django flask react angular vue ios android
    windows ubuntu debian macos iphone ipad galaxy
    pixel gpt llama claude gemini http tls ssl usb ps playstation xbox kotlin swift rust go c sql postgres
    postgresql mysql sqlite redis mongodb kubernetes
    docker numpy pandas pytorch tensorflow spring laravel excel office word outlook chrome firefox safari
    bluetooth wifi pi rtx gtx version release gen
    generation chapter step level grade stage type class form route terminal gate platform room""".split()
)
"""Words whose following number names a version or a model, not a quantity."""

LANGUAGES = frozenset(
    """english french german spanish italian portuguese dutch russian chinese mandarin cantonese japanese korean
    arabic hindi urdu bengali tamil telugu
    turkish polish swedish norwegian danish finnish greek hebrew latin vietnamese thai indonesian malay ukrainian
    czech hungarian romanian""".split()
)
CLASSES: dict[str, str] = {
    word: group
    for line in """
    program python java javascript typescript php ruby kotlin swift rust golang perl scala haskell matlab r julia
    program cobol fortran lua bash powershell
    os windows linux macos mac ios android ubuntu debian fedora chromeos
    browser chrome firefox safari edge opera brave|cloud aws azure gcp
    database mysql postgres postgresql sqlite mongodb redis oracle cassandra mariadb dynamodb
    web react angular vue svelte django flask rails laravel
    format pdf docx doc csv json xml yaml html png jpg jpeg gif svg mp3 mp4 wav xlsx txt epub avi mkv zip rar tar
    app whatsapp instagram facebook twitter snapchat tiktok telegram signal youtube linkedin reddit pinterest
    app discord slack zoom skype teams
    mailer gmail outlook yahoo hotmail protonmail|pay paypal venmo stripe visa mastercard amex
    brand apple samsung google microsoft amazon netflix sony nokia
    device iphone ipad macbook laptop desktop tablet phone smartphone kindle xbox playstation switch
    net wifi bluetooth ethernet usb hdmi
    plan basic standard premium pro plus enterprise starter free business team|size small medium large
    card credit debit prepaid gift
    pet cat dog rabbit hamster parrot|drink coffee tea water juice beer wine|meat chicken beef pork lamb fish turkey
    """.replace("\n", "|").split("|")
    if line.strip()
    for group, *words in [line.split()]
    for word in words
}
"""Alternatives of one kind that WordNet does not put side by side."""

LANGUAGE_WORDS: dict[str, frozenset[str]] = {
    "en": frozenset(
        "the is are of and to in what how do does can you i my for with on it a why where when which who".split()
    ),
    "de": frozenset(
        """der die das ist und wie was ich nicht ein eine zu den mit auf für von sie wo warum kann man mein meine wird
        bitte""".split()
    ),
    "fr": frozenset(
        """le la les est et comment que quoi je ne pas un une des du dans pour sur avec où pourquoi mon ma vous quel
        quelle puis""".split()
    ),
    "es": frozenset(
        """el la los las es y cómo como qué que yo no un una de del en para con por dónde mi puedo cuál cuando está
        mis se""".split()
    ),
    "it": frozenset(
        """il lo la gli è e come che cosa io non un una di del nel per con dove mio posso quale quando sono perché
        della""".split()
    ),
    "pt": frozenset(
        "o os as é e como que eu não um uma de do da em para com por onde meu posso qual quando está são minha".split()
    ),
    "nl": frozenset(
        "de het een is en hoe wat ik niet van op voor met waar waarom mijn kan welke wanneer zijn naar je".split()
    ),
}
"""The commonest words of a language, to vote for it."""
SCRIPTS: tuple[tuple[int, int, str], ...] = (
    (0x0370, 0x03FF, "greek"), (0x0400, 0x052F, "cyrillic"), (0x0590, 0x05FF, "hebrew"), (0x0600, 0x06FF, "arabic"),
    (0x0900, 0x097F, "devanagari"),
    (0x0980, 0x09FF, "bengali"), (0x0B80, 0x0BFF, "tamil"), (0x0E00, 0x0E7F, "thai"), (0x1100, 0x11FF, "hangul"),
    (0x3040, 0x30FF, "kana"),
    (0x4E00, 0x9FFF, "han"), (0xAC00, 0xD7AF, "hangul"),
)  # fmt: skip
