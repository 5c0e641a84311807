"""The embedded multiple-choice task: in which country is this town?

Built from `airportsdata` (MIT) and the English country names of `babel`, the same on every machine:

1. Keep the towns of plain letters (words of A-Z joined by a space), at least 4 letters long, that lie in one country
   only (compared without case) and do not contain their country's name.
2. Keep the countries with at least 40 such towns.
3. Draw each country's towns in a seeded order: 30 train, the next 10 test, up to 5 more validation.
4. Three distractors are drawn from the kept countries of the same time-zone region, topped up from the others; the
   correct choice takes the four places in turn.
5. Rows are shuffled within their split, so that any first part is a fair sample.
"""

from __future__ import annotations

import importlib.metadata
import random
import re
from collections import Counter, defaultdict

from lorascope.core.errors import DataError
from lorascope.core.optional import require
from lorascope.core.seeds import derive_seed
from lorascope.tasks.rows import ChoiceRow

TRAIN, TEST, VALIDATION = 30, 10, 5
_PLAIN = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*")
_INSTALL = "'lorascope[quickstart]'"


def towns() -> tuple[dict[str, tuple[ChoiceRow, ...]], dict[str, str]]:
    """Build the towns task.

    Returns:
        Rows by split, and the packages (with versions) they come from.

    Raises:
        MissingDependencyError: `airportsdata` or `babel` is not installed.

    Example:
        >>> rows, _ = towns()
        >>> rows["train"][0].question.startswith("In which country is the town of ")
        True
    """
    countries, regions = _countries()
    by_region = defaultdict(list)
    for name in sorted(countries):
        by_region[regions[name]].append(name)
    splits: dict[str, list[ChoiceRow]] = {"train": [], "test": [], "validation": []}
    for number, (country, names) in enumerate(sorted(countries.items())):
        generator = random.Random(derive_seed(0, "towns", country))
        generator.shuffle(names)
        ends = (TRAIN, TRAIN + TEST, TRAIN + TEST + VALIDATION)
        parts = {"train": names[: ends[0]], "test": names[ends[0] : ends[1]], "validation": names[ends[1] : ends[2]]}
        near = [name for name in by_region[regions[country]] if name != country]
        far = [name for name in sorted(countries) if name != country and name not in near]
        for split, part in parts.items():
            for index, town in enumerate(part):
                choices = generator.sample(near, min(3, len(near)))
                choices += generator.sample(far, 3 - len(choices))
                answer = (number + index) % 4
                choices.insert(answer, country)
                question = f"In which country is the town of {town}?"
                splits[split].append(ChoiceRow(question, tuple(choices), answer, f"towns:{town}"))
    for split, rows in splits.items():
        random.Random(derive_seed(0, "towns", split)).shuffle(rows)
    versions = {package: importlib.metadata.version(package) for package in ("airportsdata", "babel")}
    return {split: tuple(rows) for split, rows in splits.items()}, versions


def _countries() -> tuple[dict[str, list[str]], dict[str, str]]:
    """Towns by country, and the time-zone region in which most of a country's airports lie."""
    airports = require("airportsdata", install=_INSTALL, purpose="the towns task").load()
    names = require("babel", install=_INSTALL, purpose="the towns task").Locale("en").territories
    places: dict[str, set[str]] = defaultdict(set)
    spelling: dict[str, str] = {}
    zones: dict[str, Counter[str]] = defaultdict(Counter)
    for _, airport in sorted(airports.items()):
        country = re.sub(r" \(.*\)", "", names.get(airport["country"], ""))
        town = airport["city"].strip()
        if country and town:
            places[town.casefold()].add(country)
            spelling.setdefault(town.casefold(), town)
            zones[country][airport["tz"].split("/")[0]] += 1
    kept: dict[str, list[str]] = defaultdict(list)
    for key, where in sorted(places.items()):
        country, town = min(where), spelling[key]
        plain = _PLAIN.fullmatch(town) is not None and len(_letters(town)) >= 4
        if len(where) == 1 and plain and _letters(country) not in _letters(town):
            kept[country].append(town)
    kept = {country: towns for country, towns in kept.items() if len(towns) >= TRAIN + TEST}
    if len(kept) < 4:
        raise DataError("the towns task found too few countries: install airportsdata==20260905")
    # Ties between regions go to the first in the alphabet.
    return kept, {country: min(zones[country].items(), key=lambda item: (-item[1], item[0]))[0] for country in kept}


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalpha())
