"""What well-known licences of models allow: a table of short notes, not legal advice.

A licence decides three things here: whether a tuned copy may be used for money, whether it may be used for research,
and what has to be done for it. Licences are known by the identifiers that model cards carry, and by words that stand
in their texts.

A yes that is wrong is the worst that can happen here. So a text counts as one of a licence that allows everything only
if it begins as that licence does, is not longer, and says nothing of limits; words of a licence that forbids count
wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Permission = Literal["allowed", "conditions", "forbidden", "unknown"]
"""conditions: allowed to those who keep what `Licence.conditions` says, which a program cannot know."""


@dataclass(frozen=True, slots=True)
class Licence:
    """One licence, or a family of them with the same answer.

    ids: as model cards write them, in lower case. text: a regular expression for its text, in lower case with single
    spaces. conditions: what is asked of whoever uses or passes on a tuned copy, in a sentence. longest: characters of
    its whole text at most, with room for names and notices; more means that somebody added something.
    """

    name: str
    ids: tuple[str, ...]
    commercial: Permission
    research: Permission
    conditions: str
    text: str | None = None
    longest: int = 0


_NOTICE = "Keep the licence's text and notices with every copy you pass on."
_NAME_THE_AUTHORS = "Name the authors and the licence, and say that the model was changed."
_POLICY = "Keep the list of forbidden uses, and pass it on with every copy."

LICENCES = (
    Licence(
        "CC BY-NC (also SA, ND)",
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-3.0", "cc-by-nc-sa-3.0", "cc-by-nc-2.0",
         "cc-by-nc-sa-2.0", "cc-by-nc-nd-3.0", "cc-by-nc", "cc-by-nc-sa", "cc-by-nc-nd", "cc-by-nc-2.5",
         "cc-by-nc-sa-2.5", "cc-by-nc-nd-2.0", "cc-by-nc-nd-2.5"),
        "forbidden", "conditions", f"Not for commercial purposes. {_NAME_THE_AUTHORS}",
        r"attribution[- ]?non-?commercial|cc[- ]by[- ]nc",
    ),
    Licence(
        "CC BY-ND", ("cc-by-nd-4.0",), "conditions", "conditions",
        "A tuned copy may be used, but not passed on.", r"attribution[- ]noderivatives",
    ),
    Licence(
        "CC BY-SA", ("cc-by-sa-4.0", "cc-by-sa-3.0"), "conditions", "conditions",
        f"{_NAME_THE_AUTHORS} A tuned copy that is passed on must carry the same licence.",
        r"attribution[- ]sharealike",
    ),
    Licence(
        "CC BY", ("cc-by-4.0", "cc-by-3.0", "cc-by-2.0", "cc-by-2.5"), "allowed", "allowed", _NAME_THE_AUTHORS,
        r"(creative commons )?attribution (4\.0|3\.0)", longest=22_000,
    ),
    Licence(
        "CC0 or public domain", ("cc0-1.0", "unlicense", "pddl", "wtfpl"), "allowed", "allowed", "",
        r"cc0 1\.0 universal|free and unencumbered software", longest=9_000,
    ),
    Licence(
        "Qwen research licence", ("qwen-research", "tongyi-qianwen-research"), "forbidden", "conditions",
        "Not for commercial purposes; a commercial licence has to be asked for.",
        r"(tongyi qianwen|qwen) research license",
    ),
    Licence(
        "Qwen or Tongyi Qianwen licence", ("qwen", "tongyi-qianwen"), "conditions", "conditions",
        "Above 100 million users a month a licence has to be asked for.",
        r"(tongyi qianwen|qwen) license agreement",
    ),
    Licence(
        "Mistral research or non-production licence", ("mrl", "mnpl", "mistral-ai-research-licence"), "forbidden",
        "conditions", "Not for production or commercial use; a commercial licence has to be asked for.",
        r"mistral ai (research|non-production) licen[cs]e",
    ),
    Licence(
        "Apple research licence", ("apple-amlr",), "forbidden", "conditions", "For research only.",
        r"apple machine learning research model",
    ),
    Licence(
        "Stability AI community licence", ("stabilityai-ai-community", "stabilityai-community"), "conditions",
        "conditions", "Commercial use by those with less than a million dollars of income a year, who register.",
        r"stability ai community license",
    ),
    Licence(
        "Llama community licence",
        ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4"),
        "conditions", "conditions",
        "Above 700 million users a month a licence has to be asked for; the acceptable use policy holds; from Llama 3 "
        "on, show 'Built with Llama' and begin the tuned model's name with Llama. Some models are not given to those "
        "who live in the European Union.",
        r"llama (2|3|3\.\d|4) (version release date|community license)|llama (2|3|3\.\d|4) community",
    ),
    Licence(
        "Gemma terms of use", ("gemma",), "conditions", "conditions",
        f"{_POLICY} Say that the model was changed.", r"gemma terms of use",
    ),
    Licence(
        "OpenRAIL",
        ("openrail", "openrail++", "bigscience-openrail-m", "bigcode-openrail-m", "creativeml-openrail-m",
         "bigscience-bloom-rail-1.0", "open-rail"),
        "conditions", "conditions", _POLICY, r"openrail|responsible ai license|rail license",
    ),
    Licence(
        "DeepSeek model licence", ("deepseek", "deepseek-license"), "conditions", "conditions", _POLICY,
        r"deepseek license agreement",
    ),
    Licence(
        "Falcon licence", ("falcon-llm-license", "tii-falcon-llm"), "conditions", "conditions",
        "The acceptable use policy holds.", r"tii falcon( llm)? license",
    ),
    Licence(
        "NVIDIA open model licence", ("nvidia-open-model-license",), "conditions", "conditions",
        "Guard rails may not be switched off without others in their place; name the licence.",
        r"nvidia open model license",
    ),
    Licence(
        "GNU AGPL", ("agpl-3.0",), "conditions", "conditions",
        "What is passed on, or offered over a network, must come under the same licence.",
        r"gnu affero general public license",
    ),
    Licence(
        "GNU LGPL", ("lgpl", "lgpl-2.1", "lgpl-3.0"), "conditions", "conditions",
        "A changed copy that is passed on must come under the same licence.", r"gnu lesser general public license",
    ),
    Licence(
        "GNU GPL", ("gpl", "gpl-2.0", "gpl-3.0"), "conditions", "conditions",
        "A changed copy that is passed on must come under the same licence.", r"gnu general public license",
    ),
    Licence(
        "Mozilla Public License", ("mpl-2.0",), "conditions", "conditions",
        "Changed files that are passed on must come under the same licence.", r"mozilla public license,? version 2\.0",
    ),
    Licence(
        "Apache 2.0", ("apache-2.0",), "allowed", "allowed", _NOTICE,
        r"apache license,? version 2\.0,? january 2004|licensed under the apache license, version 2\.0 \(the .license",
        longest=12_500,
    ),
    Licence(
        "BSD", ("bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear"), "allowed", "allowed", _NOTICE,
        r"redistribution and use in source and binary forms", longest=2_600,
    ),
    Licence(
        "MIT", ("mit", "isc", "mit-0"), "allowed", "allowed", _NOTICE,
        r"permission is hereby granted, free of charge, to any person|"
        r"permission to use, copy, modify, and/or distribute this software for any purpose", longest=2_000,
    ),
)  # fmt: skip

_BY_ID = {name: licence for licence in LICENCES for name in licence.ids}


def licence_by_id(name: str) -> Licence | None:
    """The licence a model card's identifier means; None for one that the table does not have."""
    return _BY_ID.get(name.strip().lower())


def licence_by_text(text: str) -> Licence | None:
    """The licence whose text this is, or begins; None where no known words stand in it, or others stand beside them.

    The strictest kind is looked for first; of several under conditions the one that is named first counts.
    """
    words = " ".join(text.lower().split())
    forbidding = next((one for one, pattern in _texts("forbidden") if re.search(pattern, words)), None)
    if forbidding is not None:
        return forbidding
    named = [(match.start(), one) for one, pattern in _texts("conditions")
             if (match := re.search(pattern, words[:_LOOKED_AT]))]  # fmt: skip
    if named:
        return min(named, key=lambda found: found[0])[1]
    if _LIMITS.search(words):
        return None
    free = (one for one, pattern in _texts("allowed") if re.search(pattern, words[:_BEGINNING]))
    return next((one for one in free if len(words) <= one.longest), None)


def _texts(answer: Permission) -> Iterator[tuple[Licence, str]]:
    """The licences with this answer to commercial use that are known by their text, with its pattern."""
    return ((one, one.text) for one in LICENCES if one.commercial == answer and one.text is not None)


_LOOKED_AT = 6_000
"""Characters of a text that are looked at: a title stands at its beginning, other licences are named further down."""
_BEGINNING = 600
"""Characters in which a licence that allows everything has begun: a title and the names of its owners come before."""
_LIMITS = re.compile(
    r"(?<!commercial or )(?<!commercial and )\bnon-? ?commercial|\bcommons clause|\bmodified (mit|apache|bsd)"
    r"|\b(research|academic|educational|evaluation|personal|internal)( use| purposes?)? only"
    r"|\bonly for (research|academic)"
    r"|\b(additional|further|following) (terms|restrictions|limitations) (and conditions )?apply|\bmonthly active users"
    r"|\bresearch (and|or) (academic|educational)|\bfor research\b|\bnot for (commercial|production)"
    r"|\bcommercial (use|licen[cs]e|products)|\bweights\b|\bthe models?\b|\bacceptable use|\bgood, not evil"
)
"""Words that no text of a licence that allows everything holds, but those of people who limit one."""
