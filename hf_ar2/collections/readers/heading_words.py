"""Classifies headings: queries as they are, headings that need context, and headings that nobody would ask."""

from __future__ import annotations

import re

MAX_HEADING_WORDS = 30

# A heading with only these words is not a query, even with context.
_EMPTY = set(
    """name names synopsis description descriptions content contents toc introduction introductory intro overview notes
    note see also table tables author authors credit credits acknowledgement acknowledgements acknowledgment
    acknowledgments thanks reference references link links misc miscellaneous other others todo todos index summary
    preface foreword abstract appendix appendices general about detail details background remark remarks comment
    comments conclusion conclusions preamble epilogue colophon home welcome further reading contact contacts maintainer
    maintainers contributor contributors status copyright copyrights warning warnings caution caveat important tip tips
    versions version release releases released changes change changelog news new what's whats date history update
    updates final notable suggested suggestions standards conforming attributes availability disclaimer discussion
    motivation purpose rationale scope topic topics section chapter part page pages title heading end beginning start
    top glossary readme resources resource additional information info""".split()
)
# A heading with one of these words is the name of a file.
_NAMES_OF_FILES = {"readme", "changelog", "todo"}
# A heading of these words is a query only with context.
_GENERIC = set(
    """install installs installing installation installations uninstall uninstalling uninstallation setup use uses using
    usage usages example examples sample samples option options parameter parameters params param argument arguments
    args arg return returns returned value values exit code codes error errors exception exceptions environment variable
    variables file files bug bugs issue issues known feature features requirement requirements prerequisite
    prerequisites dependency dependencies license licence licenses licensing configuration configurations configure
    configuring config settings setting command commands function functions method methods class classes module modules
    attribute property properties field fields type types constant constants macro macros get getting started quick
    quickstart guide guides tutorial tutorials documentation docs doc manual api basic basics advanced simple complex
    full complete more common default defaults build builds building compile compiling compilation test tests testing
    run running support supported development developing contribute contributing troubleshooting faq faqs frequently
    asked question questions answer answers problem problems limitation limitations security performance compatibility
    backward backwards platform platforms download downloads downloading source sources data input inputs output outputs
    format formats syntax main old first second third last next previous step steps list lists figure key keys design
    implementation interface interfaces library libraries package packages program programs tool tools project projects
    user users developer developers system systems diagnostics caveats line lines object objects structure structures
    model algorithm algorithms operation operations expression expressions statement statements operator operators
    process procedure procedures rule rules case cases concept concepts theory practice task tasks goal goals server
    client message messages signal signals request requests response responses node block header headers body text
    string strings number numbers mode modes level levels state action actions event events result results report
    reports reporting mailing website web site homepage directory directories folder path paths migration migrating
    upgrade upgrading minimal short long local global internal external standard custom special available required
    optional recommended how-to works work working improvements fixes overall alternative alternatives flag flags group
    groups operand operands wide""".split()
)
_FUNCTION_WORDS = set(
    """a an and any are as at be been by can could did do does for from had has have how i if in into is it its me my no
    not of off on or our out should so some than that the their them then there these they this those to up via was we
    were what when where which who whom whose why will with within without would you your vs e.g i.e etc &""".split()
)
_RELEASE = set(
    """version versions v release releases released changes change changelog new news in since from to of the a and for
    notes note what's whats date updated update unreleased stable beta alpha patch bugfix bugfixes fixes features
    compatible incompatible between before after later earlier monday tuesday wednesday thursday friday saturday sunday
    mon tue wed thu fri sat sun jan feb mar apr jun jul aug sep sept oct nov dec january february march april may june
    july august september october november december utc gmt""".split()
)
_COMMON = _EMPTY | _GENERIC | _FUNCTION_WORDS
_OF_RELEASES = set("version release releases released changes news new changelog notes what's".split())
_VERSION = re.compile(
    r"(?<![\w.])(?:v|r|rev)?\d+(?:\.(?:\d+|x))+[-\w.+~]*|(?<![\w.])v\d+\b|\b\d{4}-\d\d(?:-\d\d)?\b|"
    r"\b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b|\b(?:19|20)\d\d(?:\d{4})?\b|\b\d{1,2}:\d\d(?::\d\d)?\b"
)
_VERSION_AT_END = re.compile(r"\s+[(@]?v?\d+(?:\.\d+)+\S*$")
_DEBIAN_CHANGE = re.compile(r"\S+ \([^()\s]+\) [\w -]+; ?urgency", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"(?:(?:class|def|fn|func|pub|function|sub|void|int|char|long|unsigned|const|static|struct|\w+_\w+|\w*[a-z][A-Z]\w*|"
    r"\S*[*&])\s+){0,4}[\w.:$@%&*~\\<>-]*\w(?:\((?!s\)|es\)|ies\)).*\)?| \(\))\s*(?:->.*|[;:])?|"
    r".*(?:->|=>)\s*[\w$]+\(.*|impl<.*"
)
# A kind of code object and its name.
_KIND = re.compile(
    r"(?i:(?:global|static|public|private|virtual|abstract|constant|built-?in|function|macro)\s+)*"
    r"(?i:function|method|macro|class|struct|structure|typedef|type|enum|enumeration|union|variable|constant|event|signal|"
    r"property|attribute|field|module|namespace|interface|member|constructor|directive|sub|def|void|int|char|const)s?"
    r"(?::\s*\S+|\s+(?:\w+[a-z][A-Z]\w*|\w*_\w*|[a-z]\w*[A-Z]\w*))"
)
_IDENTIFIER = re.compile(r"\w+:\s+\w+|[a-z]\w*[a-z][A-Z]\w{2,}|\w*_\w*|[a-z]+\d+")
_ADDRESS = re.compile(r"\w@\w|://|\bwww\.")
_NUMBERING = re.compile(
    r"(?-i:[A-Z]{2,}\d+:\s+)|(?:Q(?:uestion)?\s*\d*\s*[.:)]\s*)|(?:(?:chapter|section|part|appendix|step|example|figure)\s+[\dA-Z.]+\s*[.:)-]\s+)|"
    r"(?:[(\[]?(?:\d{1,3}(?:\.\d+)*|[a-zA-Z]|[IVX]{1,5})(?:\.\d+)*[.):\]]+\s+)|(?:\d{1,2}(?:\.\d{1,2})+\s+)|(?:\d{1,2}\s+(?-i:(?=[A-Z])))|[§*•#+-]\s+",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+(?:['’.+&/-]+[^\W\d_]+)*")
_SHORT_NAME, _LONGEST_NAME = 5, 40  # such as ABBA; longer ones are not looked at whole
# Words in capitals that are not ordinary words: without a vowel, with a digit or a slash, one letter except A, and
# common abbreviations.
_STAYS = re.compile(
    r"\W*(?:[B-Z]|[^AEIOUY\W_]{2,}(?:-\w+)*|\S*\d\S*|[A-Z]{1,3}(?:/[A-Z]{1,3})+|[A-Z]['’+#]\S*|"
    r"API|APIS|ASCII|CLI|CPU|FAQ|GNU|GPU|GUI|IDE|IP|JSON|OS|RAM|SQL|UI|UNIX|URI|URL|URLS|UTF|YAML)\W*"
)
_CODE = re.compile(
    r"[_=\\{}\[\]<>$|;@#*~^]|::|\(\)|^/|\w/.*/|^\.|^--?[A-Za-z]|\w\.\w+\.\w|\w\.(?!g\b|e\b)\w{2,}"
)
_CODE_WORDS = set("class def fn pub function func method void int char const static struct sub".split())


def as_query(heading: str) -> str:
    """A heading as a query: without numbering and colon, and not in capitals.

    Words that are written in capitals anyway stay so: letters such as I and C, I/O, UTF-8, and words without a vowel.

    Example:
        >>> as_query("2. HOW DO I READ XML?"), as_query("I/O in R"), as_query("NOTES")
        ('how do I read XML?', 'I/O in R', 'notes')
    """
    text = " ".join(heading.replace("`", "").split())
    while found := _NUMBERING.match(text):
        text = text[found.end() :]
    text = text.lstrip(" .:;,–—-*#=").rstrip(" .:;,–—-*=").removesuffix(" #")
    if not text.isupper():
        return text
    words = text.split()
    if len(words) == 1 and len(text) <= _SHORT_NAME and text.lower().strip("?!") not in _COMMON:
        return text
    return " ".join(word if _STAYS.fullmatch(word[:_LONGEST_NAME]) else word.lower() for word in words)


def as_context(heading: str) -> str:
    """A heading as the context of another one: without the version at its end."""
    return _VERSION_AT_END.sub("", as_query(heading))


def reason_to_skip(heading: str) -> str | None:
    """The reason why no person would ask this heading as a question, or None."""
    text = as_query(heading)
    if not any(map(str.isalpha, text)):
        return "numbers alone" if _VERSION.search(heading) is None else "version numbers and dates"
    if _ADDRESS.search(text):
        return "addresses"
    if re.match(r"[`\"'\s]*--?[A-Za-z]", heading):
        return "code: names, options and signatures"
    if _is_version(heading, text):
        return "version numbers and dates"
    tokens = text.split()
    plain = [token for token in tokens if not _CODE.search(token.strip("\"'`,.:;?!()"))]
    words = [
        word
        for token in plain
        for word in _WORD.findall(token)
        if word.lower() not in _FUNCTION_WORDS | _CODE_WORDS
    ]
    named = _KIND.fullmatch(text) or (len(tokens) <= 2 and _IDENTIFIER.fullmatch(text))
    if named or _SIGNATURE.fullmatch(text) or (not words and len(plain) < len(tokens)):
        return "code: names, options and signatures"
    return None


def _is_version(heading: str, text: str) -> bool:
    numbered = re.match(r"\d+(?:\.\d+)*[.)]?\s+(.*)", heading)
    if numbered and any(word not in _RELEASE for word in _WORD.findall(numbered[1].lower())):
        heading = numbered[1]  # the number of a section, not a version
    if _DEBIAN_CHANGE.match(heading) or "unreleased" in text.lower().split():
        return True
    rest, count = _VERSION.subn(" ", heading)
    found = _WORD.findall(rest.lower())
    words = [word for word in found if word not in _RELEASE and len(word) > 1]
    if not count or any(word.endswith("ing") for word in words):
        return False
    if not words or (len(words) <= 3 and _OF_RELEASES & set(found)):
        return True
    return len(words) == 1 and len(found) < 3 and not _VERSION.match(heading.lstrip("#*[( "))


def asks_nothing(text: str) -> bool:
    """Whether a heading is no query, even with context."""
    words = _content(text)
    return bool(words) and (all(word in _EMPTY for word in words) or bool(_NAMES_OF_FILES & set(words)))


def needs_context(text: str) -> bool:
    """Whether a heading is unclear alone: a single word, or only words that every manual has."""
    words = _content(text)
    if not text.isascii() and not words:
        return False  # in a script whose words are not listed here
    specific = [word for word in words if word not in _COMMON]
    is_latin = all(ord(character) < 0x2E80 for character in text)
    return not specific or (len(text.split()) == 1 and is_latin)


def gives_context(context: str) -> bool:
    """Whether a heading can give context to another one: a short name, or a command."""
    words = context.split()
    common = all(word in _COMMON for word in _content(context))
    if not words or common or reason_to_skip(context) or asks_nothing(context):
        return False
    return len(words) <= 3 or (len(words) <= 8 and is_command(context))


def is_command(text: str) -> bool:
    """Whether a text looks like the name of a command or a package: in lower case, without function words."""
    return text == text.lower() and not _FUNCTION_WORDS & set(text.split())


def add_context(text: str, context: str) -> str:
    """A heading joined with its context as a query."""
    if text.endswith("?") or len(text.split()) > 4:
        return f"{text} — {context}"
    text, context = (re.sub(r"(?i)^(the|an?)\s+(?=\w)", "", part) for part in (text, context))
    first = text.split()[0]
    return f"{context} {first.lower() if first[1:].islower() else first}{text[len(first) :]}"


def _content(text: str) -> list[str]:
    words = [word.lower().replace("’", "'") for word in _WORD.findall(text)]
    return [word for word in words if word not in _FUNCTION_WORDS and len(word) > 1] or words
