"""What WordNet lacks: opposites and equal words of software, accounts and shops, and British spellings.

Lemmas only. A pair belongs here when questions about everyday software use it and the built lexicon does not
    know it; tests say which.
"""

from __future__ import annotations

OPPOSITES: tuple[tuple[str, str], ...] = tuple(
    (left, right)
    for line in """
    enable disable|enable deactivate|activate disable|activate deactivate|turn-on turn-off|upload download
    allow ban|allow block|allow forbid
    allow prohibit|allow deny|allow prevent|allow disallow|permit ban|permit deny|legal ban
    login logout|signin signout|log-in log-out|encrypt decrypt|encode decode|compress decompress|import export
    ascending descending|ascend descend
    min max|minimum maximum|minimize maximize|before after|inbound outbound|incoming outgo|ingress egress
    internal external|inside outside
    public private|online offline|free pay|buy sell|lend borrow|send receive|deposit withdraw|deposit withdrawal
    credit debit|push pull|read write
    start stop|start end|begin end|begin finish|open close|lock unlock|freeze unfreeze|freeze thaw|mute unmute
    pin unpin|hide show|hide unhide
    install uninstall|install remove|subscribe unsubscribe|follow unfollow|block unblock|archive unarchive
    mount unmount|zip unzip|add remove
    add delete|insert delete|attach detach|connect disconnect|link unlink|join leave|join split|merge split
    lose gain|lose win|win lose
    increase decrease|increase reduce|increase lower|raise lower|raise reduce|raise cut|grow shrink
    expand collapse|expand contract|expand shrink
    accelerate decelerate|accelerate brake|speed slow|best worst|good bad|better worse|most least|more less
    more fewer|many few|high lowest
    biggest smallest|largest smallest|longest shortest|oldest newest|oldest youngest|old latest|first last
    early latest|cheap expensive
    high low|top bottom|upper lower|left right|north south|east west|northern southern|eastern western|up down
    on off|in out|over under
    above below|with without|for against|pro con|pros cons|advantage disadvantage|benefit drawback|benefit risk
    strength weakness|hot cold|heat cool
    warm cool|wet dry|hard soft|hardware software|hardwood softwood|easy hard|easy difficult|simple complex
    safe dangerous|safe unsafe|dark light
    day night|am pm|morning evening|always never|sync async|synchronous asynchronous|mutable immutable
    static dynamic|local remote|local global
    client server|frontend backend|horizontal vertical|portrait landscape|row column|input output|source target
    source destination|parent child
    encourage discourage|accept reject|accept decline|accept refuse|approve reject|approve deny|grant revoke
    grant deny|pass fail|succeed fail
    success failure|true false|positive negative|include exclude|attract repel|absorb emit|absorb release
    inhale exhale
    arrive depart|arrival departure
    entrance exit|enter exit|enter leave|import-tax export-tax|employer employee|landlord tenant|buyer seller
    lender borrower|husband wife
    male female|man woman|boy girl|mother father|son daughter|brother sister|king queen|promote demote
    upgrade downgrade|upvote downvote
    overclock underclock|overestimate underestimate|overpay underpay|overcharge undercharge|presence absence
    present absent|temporary permanent
    temporarily permanently|domestic international|refundable nonrefundable|require optional|mandatory optional
    voluntary compulsory
    voluntary mandatory|manual automatic|manually automatically|wire wireless|prepaid postpaid|premium standard
    gross net|asset liability
    profit loss|surplus deficit|inflation deflation|bull bear|bullish bearish|long short|rich poor
    cheap expensive|old new|fat thin|thick thin
    deep shallow|wide narrow|tight loose|heavy light|strong weak|loud quiet|full empty|clean dirty|alive dead
    birth death|bear die|love hate
    friend enemy|remember forget|tighten loosen|strengthen weaken|widen narrow|lengthen shorten|brighten darken
    opt-in opt-out|check-in check-out
    whitelist blacklist|whitelist denylist|allowlist blocklist|allowlist denylist|pros drawback|indoor outdoor
    indoors outdoors|vegan meat
    raw cook|early late|sooner later|ahead behind|forward backward|forwards backwards
    clockwise counterclockwise|clockwise anticlockwise
    vertex edge|acid base|anode cathode|proton electron|prefix suffix|even odd|numerator denominator
    multiply divide|plus minus|addition subtraction
    add subtract|odd even|convex concave|sender receiver|sender recipient|export-data import-data
    serialize deserialize|commit rollback|stage unstage
    lower higher|extend shorten|destroy save|destroy build|build demolish|install reinstall|uninstall reinstall
    create delete|create remove|create destroy
    during outside|postpone advance|tag untag|flag unflag|cancel reinstate|cancel confirm|cancel renew
    renew terminate|lend lease|receive give|give take
    little much|little lot|gain loss|rise fall|rise drop|climb drop|grow fall|stay leave|keep remove|keep delete
    keep discard|save delete|hire fire
    evening morning|summer winter|sunrise sunset|import-duty export-duty|ban unban|pause resume|suspend resume
    suspend reinstate|fast slow|quickly slowly|truncate drop
    maximum usual|maximum normal|maximum typical|minimum usual|minimum normal|minimum typical
    """.replace("\n", "|").split("|")
    if line.strip()
    for left, right in [line.split()]
)
"""Pairs of lemmas that turn a question round when one stands for the other."""

_TERMS = """
    radius diameter circumference|area perimeter volume|gcd lcm|gcf lcm|hcf lcm|mean median|median mode
    sine cosine tangent cotangent secant|sin cos tan cot|arcsin arccos arctan|permutation combination
    derivative integral|derivative antiderivative|numerator denominator|odd even|prime composite|rational irrational
    variance covariance|precision recall|row column
    mitosis meiosis|artery vein capillary|systolic diastolic|bacteria virus fungus|bacterial viral fungal
    benign malignant|acute chronic|ibuprofen acetaminophen aspirin naproxen|insulin glucagon
    hypertension hypotension|hyperglycemia hypoglycemia|hyperthyroidism hypothyroidism|anion cation|fission fusion
    isotope isomer|exothermic endothermic|concave convex|series parallel|solid liquid
    latitude longitude|solstice equinox|perihelion aphelion|stalactite stalagmite
    felony misdemeanor infraction|plaintiff defendant|murder manslaughter|libel slander|copyright trademark patent
    civil criminal|prosecutor defender|appellant respondent|grantor grantee|trustor trustee|mortgagor mortgagee
    lessor lessee|licensor licensee|franchisor franchisee|assignor assignee|trustee beneficiary
    debit credit|stock bond|ira 401k|gross net|apr apy|dividend interest
    stack queue|tcp udp|public private protected|http https
    north south east west|breakfast lunch dinner
    monday tuesday wednesday thursday friday saturday sunday|weekday weekend
    january february march april june july august september october november december|spring summer autumn winter
    nanogram microgram milligram gram kilogram tonne ounce pound|nanometer micrometer millimeter centimeter meter
    kilometer mile yard foot inch|milliliter liter gallon quart pint|nanosecond microsecond millisecond
    celsius fahrenheit kelvin|kilobyte megabyte gigabyte terabyte petabyte|watt kilowatt megawatt
"""
_SETS = [frozenset(line.split()) for line in _TERMS.replace("\n", "|").split("|") if line.strip()]
TERMS: dict[str, frozenset[str]] = {
    word: frozenset().union(*(group for group in _SETS if word in group)) - {word} for word in frozenset().union(*_SETS)
}
"""Terms of art, each with those it is set apart from: a question with another one of them is another question."""

UNITS: dict[str, str] = dict(
    pair.split(":")
    for pair in """
    kg:kilogram kgs:kilogram g:gram mg:milligram mcg:microgram lb:pound lbs:pound oz:ounce km:kilometer cm:centimeter
    mm:millimeter mi:mile ft:foot yd:yard ml:milliliter gal:gallon kb:kilobyte mb:megabyte gb:gigabyte tb:terabyte
    kw:kilowatt mw:megawatt ms:millisecond ns:nanosecond
    """.split()
)
"""Units as they are shortened."""

_GROUPS = """
    login signin log-in sign-in logon|logout signout log-out sign-out|signup register sign-up
    disable turn-off switch-off deactivate
    enable turn-on switch-on activate|delete remove erase|photo picture image pic|tv television
    phone telephone cellphone smartphone mobile
    movie film|laptop notebook|pc computer|app application|info information|docs documentation|doc document
    repo repository|config configuration
    db database|admin administrator|password passcode passphrase|pwd password|money cash|kid child|mom mother
    dad father|bike bicycle|fridge refrigerator
    flat apartment|holiday vacation|lift elevator|car automobile auto|begin start|stop end quit|purchase buy
    cost price|cheap inexpensive|fix repair|paracetamol acetaminophen
    bitcoin btc|error bug|setup install|maths math|uni university|doctor physician|lawyer attorney|job work|pay payment
    mail email|ad advertisement advert|exam test
    approx approximately about|max maximum|min minimum|temp temperature|avg average|dept department
    govt government|vs versus|ok okay|lose misplace
    quick fast|reset recover|obtain get|acquire get
    big large|biggest largest|newest latest recent|final last|each every all|little small|best top
    way method|purpose point
    difference differ|meaning mean
    definition define|explanation explain|population inhabitant|city town|trip travel|ship deliver
    shipping delivery|refund reimburse
    cancel terminate|update upgrade|wage salary|employee worker|cure heal|remedy cure treat
"""
SAME: dict[str, str] = {
    word: group[0] for line in _GROUPS.replace("\n", "|").split("|") if (group := line.split()) for word in group
}
"""Words that say the same in a question, each with the one that stands for all of them."""

SPELLINGS: dict[str, str] = dict(
    pair.split(":")
    for pair in """
    colour:color colours:colors favourite:favorite favourites:favorites behaviour:behavior behaviours:behaviors
    organise:organize
    organisation:organization analyse:analyze centre:center centres:centers metre:meter metres:meters litre:liter
    litres:liters
    kilometre:kilometer kilometres:kilometers licence:license licences:licenses defence:defense
    travelling:traveling travelled:traveled
    cancelled:canceled cancelling:canceling cancellation:cancelation programme:program programmes:programs
    grey:gray neighbour:neighbor
    neighbours:neighbors optimise:optimize recognise:recognize realise:realize apologise:apologize
    minimise:minimize maximise:maximize
    normalise:normalize serialise:serialize initialise:initialize synchronise:synchronize cheque:check
    cheques:checks tyre:tire tyres:tires
    aluminium:aluminum theatre:theater labour:labor honour:honor flavour:flavor catalogue:catalog dialogue:dialog
    jewellery:jewelry
    learnt:learned burnt:burned spelt:spelled dreamt:dreamed mum:mom e-mail:email e-mails:emails wi-fi:wifi
    modelling:modeling labelled:labeled
    """.split()
)
"""British and variant spellings, each with the one used here."""

KEPT = frozenset("left found saw felt bound ground wound rose".split())
"""Words that are more often themselves than the past of another one."""
