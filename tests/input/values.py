"""Values that nobody means: strategies for numbers and text from outside. Never imported by the package."""

from __future__ import annotations

from hypothesis import strategies as st

BEYOND_ALL_BOUNDS = 2**40
DIGITS = "9" * 5000  # more than Python turns into a number
WORDS = (
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "-0",
        "+1",
        "1e3",
        "1_0",
        "0x10",
        "１",
        "²",
        "1.5",
        "half",
        "%s",
        "{0}",
        "1,1",
        "0-",
    ),
    *("0-", "0-99999999999", "3-1", "1:0", "nan:1", "0:nan", "inf%", "-1%", "101%", "1e400", "nan", "inf", "-inf"),
    *("1e-320", "4e-46", "-1e-320", DIGITS, f"{DIGITS}-{DIGITS}", f"{DIGITS}x{DIGITS}", f"{DIGITS}%", f"1.{DIGITS}"),
    *("999999999x999999999", "0x0", "shapes:0", "shapes:-1", f"shapes:{DIGITS}", "shapes:99999999999999", "cuda:x"),
    *(f"cuda:{DIGITS}", "é\u202e\u2028", "\x1b[31mred\x1b[0m\x07", "a\nb\r\nc", "x" * 100_000, "[" * 100_000),
    *("{" * 100_000, "a." * 50_000, "caf\udce9", "\ud800", "𝟘", "null", "true", "[]", "{}", '"', "\\", "''"),
)
INTEGERS = st.one_of(
    st.integers(min_value=BEYOND_ALL_BOUNDS),
    st.integers(max_value=-1),
    st.integers(-2, 3),
    st.sampled_from((2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 10**400)),
)
FLOATS = st.one_of(
    st.floats(allow_subnormal=True),
    st.sampled_from((5e-324, 1e-45, 1e-38, 3.5e38, -0.0, float("nan"), float("inf"), -float("inf"), 1e308)),
)
TEXT = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=40),
    st.text(st.characters(categories=("Cc", "Cf", "Cs", "Zl", "Nd")), max_size=20),
)
# As a shell passes it on: an argument holds no NUL, and what is no path leads nowhere.
ARGUMENTS = st.one_of(INTEGERS.map(str), FLOATS.map(str), TEXT).filter(lambda text: not set("\0/") & set(text))
# As JSON and TOML give it.
DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
