"""Every citation by number is in docs/references.md, with the author and the year that stand beside it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})|doi:(10\.\S+?)(?=[.;,)]*(?:\s|$))")


def _known() -> dict[str, tuple[str, str]]:
    page = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:arXiv|doi):(\S+) \| ([^|]+) \| (\d{4}) \|", page, flags=re.MULTILINE)
    return {number: (author.strip(), year) for number, author, year in rows}


def _texts() -> dict[str, str]:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("*.md")]
    return {
        str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files if file.name != "references.md"
    }


def _citations(text: str) -> list[tuple[str, str]]:
    """Each number with the sentence before it, back to the citation before."""
    found, last = [], 0
    for match in NUMBER.finditer(text):
        found.append((match[1] or match[2], " ".join(text[max(last, match.start() - 200) : match.start()].split())))
        last = match.end()
    return found


def _wrong(text: str, known: dict[str, tuple[str, str]]) -> list[str]:
    """What is wrong with a text's citations: a number unknown, or another author or year beside it."""
    wrong = []
    for number, before in _citations(text):
        if number not in known:
            wrong.append(f"{number} is not in docs/references.md")
            continue
        author, year = known[number]
        beside = before.rsplit(";", 1)[-1]
        if re.search(r"\b(19|20)\d{2},?[^.;]*$", beside) and not (author in beside and year in beside):
            wrong.append(f"{number} is by {author} {year}, not {beside[-60:]!r}")
    return wrong


@pytest.mark.parametrize("where", sorted(_texts()))
def test_citations_are_what_they_say(where: str) -> None:
    assert _wrong(_texts()[where], _known()) == []


def test_no_reference_without_a_citation() -> None:
    cited = {number for text in _texts().values() for number, _ in _citations(text)}
    # Only by author, with their numbers elsewhere, are none.
    assert sorted(_known().keys() - cited) == []


@pytest.mark.parametrize(
    "mutant",
    [
        "References:\n    Stephenson et al. 2019, arXiv:2003.01262.",  # another paper's number
        "References:\n    Holm 1980, doi:10.2307/4615733.",  # another year
        "References:\n    Somebody 2021, arXiv:2101.00001.",  # never looked up
        "References:\n    Cohen et al. 2020, doi:10.1038/s41467-020-14578-5; Chung et al. 2018, arXiv:2001.03994.",
    ],
)
def test_a_wrong_citation_is_seen(mutant: str) -> None:
    assert _wrong(mutant, _known())
