"""Copying and looking-up exercises, made from words and sentences of the other texts.

A model of ten million parameters learns facts badly, but it can learn to *use what stands in front of it*: to repeat
a list, to find a value by its key, to pick a phrase out of a line, to continue a mapping that the prompt shows. That
is what extraction, classification from examples and retrieval ask of it, and plain text teaches it slowly. Each
exercise is one function `(rng, pool) -> Conversation`; `EXERCISES` says how often each is drawn. Nothing here comes
from a data set that a tuned model is measured on.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Turn = tuple[str, str]
Conversation = tuple[Turn, ...]
"""(role, content) turns; a single turn of role "text" is raw text without a chat template."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What exercises are made of; nothing of it comes from a held-out text.

    `kinds` holds nouns by what they are, `everyday` those of them whose words are common in the texts.
    """

    words: Sequence[str]
    names: Sequence[str]
    sentences: Sequence[str]
    kinds: dict[str, Sequence[str]]
    everyday: dict[str, Sequence[str]]
    definitions: Sequence[tuple[str, str]]


# A noun belongs to a kind if its first definition says it *is* one: the last word of the genus ("a soft cheese made
# from ...") is one of these.
_KINDS = {
    "food": (
        "dish sauce cheese bread soup spice meat flour pastry cake seasoning vegetable sausage condiment "
        "dessert pudding stew nut cereal dough salad noodle pasta cream syrup fruit bean candy confection "
        "steak oil juice food roll biscuit cookie pie sugar grain berry drink beverage wine tea sandwich egg "
        "jelly jam loaf ham potato pepper relish dressing paste powder mushroom"
    ),
    "animal": (
        "bird fish insect mammal rodent dog monkey snake lizard spider whale beetle antelope frog butterfly "
        "horse cat duck turtle shark moth bat parrot goose sheep goat bear worm snail deer fox ape animal "
        "reptile"
    ),
    "plant": "tree shrub fern grass wildflower moss vine orchid evergreen perennial plant palm oak cactus weed",
    "tool": (
        "tool implement device machine instrument utensil apparatus vehicle weapon hammer knife saw drill pan pot gun"
    ),
    "clothing": "garment hat shoe fabric cloth coat skirt trousers dress shirt cap boot jacket scarf cloak glove",
    "person": (
        "someone person worker writer composer scientist leader painter physicist poet actor politician "
        "musician officer soldier farmer teacher player singer king priest expert philosopher lawyer doctor"
    ),
    "illness": "disease disorder infection inflammation illness fever syndrome cancer tumor",
    "building": "building house shelter temple church dwelling hut shop store tower hotel castle school",
}
_GENUS_ENDS = re.compile(
    r"[,;:(]|\b(of|that|which|with|for|used|in|from|having|to|by|on|or|and|made|who|whose|native|containing|similar|"
    r"usually|resembling|worn|at|consisting|grown|served|cooked|eaten|caused|where|as|filled|found|bearing|characterized)\b"
)
_LEAD = re.compile(r"^(any|one|some|a|an|the|kind|type|sort|variety|form|various|several|numerous|made|of|two|many) ")
_BASIC = {kind: set(words.split()) for kind, words in _KINDS.items()}


def _kinds_of(sense: str) -> list[str]:
    while _LEAD.match(sense):
        sense = _LEAD.sub("", sense, count=1)
    genus = _GENUS_ENDS.split(sense, maxsplit=1)[0].split()
    if not genus:
        return []
    head = genus[-1]
    forms = {head, head.removesuffix("s"), head.removesuffix("es")}
    return [kind for kind, words in _BASIC.items() if forms & words]


def make_pool(sentences: Iterable[str], definitions: Iterable[str], rng: random.Random) -> Pool:
    """Collect common words, names, short sentences, and nouns by kind."""
    short = sorted({s for s in sentences if 30 <= len(s) <= 220})
    rng.shuffle(short)
    lower: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for sentence in short:
        for before, word in re.findall(r"(\w+,? )([A-Za-z]{3,12})\b", sentence):
            (names if word[0].isupper() and word[1:].islower() and before else lower)[word] += 1
    kinds: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    meanings: list[tuple[str, str]] = []
    for line in definitions:
        word, _, rest = line.partition(": ")
        sense = re.sub(r"^\(\w+\) ", "", rest.split(";")[0])
        sense = sense.split(", as in")[0].strip()
        if not re.fullmatch(r"[A-Za-z][A-Za-z' -]{2,24}", word) or not 12 <= len(sense) <= 110:
            continue
        meanings.append((word, sense))
        if rest.startswith("(noun)"):
            fitting = _kinds_of(sense)
            # A noun that fits two kinds would make a wrong answer as often as a right one.
            if len(fitting) == 1 and (word.islower() or fitting[0] in {"person", "animal", "plant"}):
                kinds[fitting[0]].append(word)
    known = {word for word, count in (lower + names).items() if count >= 3}
    return Pool(
        words=[word for word, count in sorted(lower.items()) if count >= 3 and word.islower()],
        names=[name for name, count in sorted(names.items()) if count >= 3 and name.lower() not in lower],
        sentences=short,
        kinds={kind: sorted(set(found)) for kind, found in kinds.items()},
        everyday={
            kind: sorted({name for name in found if all(part in known for part in name.split())})
            for kind, found in kinds.items()
        },
        definitions=meanings,
    )


# --- shared pieces ---------------------------------------------------------------------------------------------------


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _chat(rng: random.Random, instruction: str, text: str, answer: str) -> Conversation:
    """Put instruction and text in one of the arrangements people use: before, after, in the system turn."""
    shape = rng.random()
    if shape < 0.4:
        return ("system", instruction), ("user", text), ("assistant", answer)
    label = rng.choice(("", "", "Text: ", "Input: ", "Text:\n", "Here it is: ", '"'))
    shown = f'"{text}"' if label == '"' and '"' not in text else ("" if label == '"' else label) + text
    if shape < 0.8:
        return ("user", f"{instruction}{rng.choice((chr(10), chr(10) * 2, ' '))}{shown}"), ("assistant", answer)
    return ("user", f"{shown}\n\n{instruction}"), ("assistant", answer)


def _things(rng: random.Random, pool: Pool, kind: str, count: int) -> list[str]:
    """Distinct things of a kind: everyday ones as often as all of the dictionary's."""
    found = pool.everyday[kind]
    if rng.random() < 0.5 or len(found) < 2 * count:
        found = pool.kinds[kind]
    return rng.sample(list(found), min(count, len(found)))


def _thing(rng: random.Random, pool: Pool, kind: str) -> str:
    return _things(rng, pool, kind, 1)[0]


def _items(rng: random.Random, pool: Pool, count: int) -> list[str]:
    """Distinct items of one sort: words, names, things of a kind or of all kinds, numbers."""
    sort = rng.random()
    if sort < 0.3:
        return rng.sample(pool.words, count)
    if sort < 0.45:
        return rng.sample(pool.names, count)
    if sort < 0.5:
        return [str(n) for n in rng.sample(range(2, 2000), count)]
    if sort < 0.85:
        return _things(rng, pool, "food" if rng.random() < 0.4 else rng.choice(sorted(pool.kinds)), count)
    return list(dict.fromkeys(_thing(rng, pool, kind) for kind in rng.choices(sorted(pool.kinds), k=count)))


def _show_list(rng: random.Random, items: Sequence[str]) -> str:
    style = rng.randrange(5)
    if style == 0:
        return ", ".join(items)
    if style == 1:
        return "\n".join(f"- {item}" for item in items)
    if style == 2:
        return "\n".join(items)
    if style == 3:
        return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    return "; ".join(items)


_SYLLABLES = re.findall(
    r"\w+",
    "ba be bi bo da de di do fa fe ga go ka ke ki ko la le li lo ma me mi mo na ne no pa po ra re ri ro sa se so ta",
)


def _invented(rng: random.Random, count: int) -> list[str]:
    """Labels that mean nothing, so that only the examples can tell what they stand for."""
    style = rng.randrange(4)
    if style == 0:
        return rng.sample("ABCDEFGH", count)
    made: set[str] = set()
    while len(made) < count:
        made.add("".join(rng.choices(_SYLLABLES, k=rng.choice((2, 3)))))
    labels = sorted(made)
    rng.shuffle(labels)
    return [label.capitalize() for label in labels] if style == 1 else labels


# --- copying ---------------------------------------------------------------------------------------------------------


def repeat_list(rng: random.Random, pool: Pool) -> Conversation:
    items = _items(rng, pool, rng.randint(3, 12))
    if rng.random() < 0.5:
        wording = (
            "Repeat this list.",
            "Write the list again.",
            "Copy these items in the same order.",
            "Give me back the same list.",
            "Say these words again.",
        )
        shown = _show_list(rng, items)
        return _chat(rng, rng.choice(wording), shown, shown)
    wording = (
        "Turn this list into a JSON list.",
        "Return the items as a JSON list.",
        "Write these as a JSON array of strings.",
        "Answer with a JSON list of the items.",
    )
    return _chat(rng, rng.choice(wording), _show_list(rng, items), _compact(items))


def repeat_sentence(rng: random.Random, pool: Pool) -> Conversation:
    wording = (
        "Repeat the following sentence exactly.",
        "Copy this sentence.",
        "Write the text again, word for word.",
        "Say exactly the same.",
        "Repeat after me.",
        "Quote the text below without any change.",
    )
    text = " ".join(rng.sample(pool.sentences, rng.choice((1, 1, 2))))
    return _chat(rng, rng.choice(wording), text, text)


def repeated_words(rng: random.Random, pool: Pool) -> Conversation:
    """Raw text: a meaningless sequence, then the same again one to three times; the purest induction there is."""
    items = _items(rng, pool, rng.randint(8, 40))
    rng.shuffle(items)
    joint = rng.choice((" ", " ", ", ", "\n", " / "))
    gap = rng.choice(("\n", "\n\n", ". "))
    return (("text", gap.join([joint.join(items)] * rng.randint(2, 4))),)


def repeated_forms(rng: random.Random, pool: Pool) -> Conversation:
    """Raw text: the same items, written each time in another form.

    A word has other tokens at the start of a quotation than after a space. Copying into JSON needs to know that both
    are the same word, and this teaches it for every word at once.
    """
    items = _items(rng, pool, rng.randint(5, 24))
    forms = rng.sample(
        (
            " ".join(items),
            ", ".join(items),
            "\n".join(items),
            "\n".join(f"- {item}" for item in items),
            " / ".join(f"({item})" for item in items),
            _compact(items),
            _compact(items),
            "\n".join(f"{rng.randint(1, 12)} {item}" for item in items),
            "; ".join(f"'{item}'" for item in items),
        ),
        rng.randint(2, 4),
    )
    return (("text", rng.choice(("\n", "\n\n", " = ")).join(forms)),)


def repeated_pairs(rng: random.Random, pool: Pool) -> Conversation:
    """Raw text: pairs met in changing order; after the first round each right side follows from its left side."""
    lefts, rights = _items(rng, pool, 10), _items(rng, pool, 10)
    pairs = list(zip(lefts, rights, strict=False))[: rng.randint(3, 8)]
    arrow = rng.choice((": ", " -> ", " = ", " → ", " is ", "\t"))
    lines = []
    for _ in range(rng.randint(2, 4)):
        rng.shuffle(pairs)
        lines += [f"{left}{arrow}{right}" for left, right in pairs]
    return (("text", "\n".join(lines)),)


def reorder(rng: random.Random, pool: Pool) -> Conversation:
    items = _items(rng, pool, rng.randint(3, 7))
    shown = _show_list(rng, items)
    tasks: tuple[tuple[str, list[str]], ...] = (
        ("Write the list in reverse order.", items[::-1]),
        ("Sort these by the alphabet.", sorted(items, key=str.lower)),
        ("Give only the first item.", items[:1]),
        ("What is the last item of the list?", items[-1:]),
        ("Return the first two items.", items[:2]),
        ("Leave out the first item and give me the rest.", items[1:]),
    )
    instruction, answer = rng.choice(tasks)
    return _chat(rng, instruction, shown, ", ".join(answer))


# --- picking out -----------------------------------------------------------------------------------------------------

_LIST_ORDER = ("as a JSON list", "as a JSON array", "as a JSON list of strings", "in a JSON list")


def capitals(rng: random.Random, pool: Pool) -> Conversation:
    words = rng.choice(pool.sentences).split()
    chosen = sorted(rng.sample(range(len(words)), min(len(words), rng.randint(0, 4))))
    found = [re.sub(r"\W", "", words[i]).upper() for i in chosen]
    # A capital "I" or "USA" that stands there already would be a second, unmarked answer.
    if any(re.fullmatch(r"\W*[A-Z]+\W*", word) for word in words) or not all(len(word) > 1 for word in found):
        return repeat_sentence(rng, pool)
    for i in chosen:
        words[i] = words[i].upper()
    wording = (
        "List the words written in capitals",
        "Return every word in capital letters",
        "Find the words in upper case",
        "Which words are in capitals? Answer",
    )
    return _chat(rng, f"{rng.choice(wording)} {rng.choice(_LIST_ORDER)}.", " ".join(words), _compact(found))


def numbers(rng: random.Random, pool: Pool) -> Conversation:
    words = " ".join(rng.sample(pool.sentences, rng.choice((1, 2))))
    words = re.sub(r"\d[\d,.]*", lambda _: str(rng.randint(2, 3000)), words)
    parts = words.split(" ")
    for _ in range(rng.randint(0, 3)):
        parts.insert(rng.randrange(len(parts) + 1), str(rng.randint(2, 999)))
    text = " ".join(parts)
    wording = (
        "Return the numbers in the text",
        "Find all numbers",
        "List every number of the text",
        "Extract the numbers",
    )
    return _chat(
        rng,
        f"{rng.choice(wording)} {rng.choice(_LIST_ORDER)}.",
        text,
        _compact([int(n) for n in re.findall(r"\d+", text)]),
    )


def filter_list(rng: random.Random, pool: Pool) -> Conversation:
    items = _items(rng, pool, rng.randint(4, 10))
    pick = rng.choice(items)
    letter = pick[0]
    tests: tuple[tuple[str, Callable[[str], bool]], ...] = (
        (f'start with "{letter}"', lambda item: item.startswith(letter)),
        (f'end with "{pick[-1]}"', lambda item: item.endswith(pick[-1])),
        (f'contain "{pick[:3]}"', lambda item: pick[:3] in item),
        ("are longer than eight characters", lambda item: len(item) > 8),
        ("consist of two or more words", lambda item: " " in item),
    )
    what, test = rng.choice(tests)
    wording = (
        "Return the items of this list that {} {}.",
        "Which of these {}? Answer {}.",
        "Keep only the items that {}, {}.",
    )
    instruction = rng.choice(wording).format(what, rng.choice(_LIST_ORDER))
    return _chat(rng, instruction, _show_list(rng, items), _compact([item for item in items if test(item)]))


def filter_kind(rng: random.Random, pool: Pool) -> Conversation:
    kind, *others = rng.sample(sorted(pool.kinds), rng.choice((2, 3)))
    if rng.random() < 0.35 and "food" not in others:
        kind = "food"
    right = set(_things(rng, pool, kind, rng.randint(1, 4)))
    items = [*right, *(_thing(rng, pool, rng.choice(others)) for _ in range(rng.randint(1, 5)))]
    items = sorted(set(items))
    rng.shuffle(items)
    wording = (
        "Return every {} in the list {}.",
        "Which of these is a {}? Answer {}.",
        "Extract each {} {}.",
        "List the {} names {}.",
    )
    instruction = rng.choice(wording).format(kind, rng.choice(_LIST_ORDER))
    return _chat(rng, instruction, _show_list(rng, items), _compact([item for item in items if item in right]))


_UNITS = re.findall(
    r"\S+",
    "cup cups bag bags box boxes piece pieces kg g pounds spoons bottle pair pairs litres sets slices bunch handful "
    "rolls oz oz. lb lb. lbs c. tsp tsp. tbsp Tbsp. teaspoon teaspoons tablespoon tablespoons pint pt. quart ml can "
    "cans pkg. package packages jar head cloves stalks sticks dash pinch small large medium old new",
)
_REMARKS = (
    "cut in half",
    "if you like",
    "washed and dried",
    "for later",
    "still in good order",
    "more to taste",
    "to taste",
    "chopped",
    "well cleaned",
    "one for each guest",
    "from the market",
    "at room temperature",
    "finely sliced",
    "painted",
    "divided",
    "melted",
    "softened",
    "thinly sliced",
    "peeled and diced",
    "drained",
    "optional",
)
_MANNERS = re.findall(
    r"\w+", "chopped diced minced fresh dried grated small large frozen broken sliced cold warm whole ground"
)


def _amount(rng: random.Random) -> str:
    """An amount as people write it: 3, 1/2, 1 1/2, 2.5, ½, 2-3, a, some."""
    whole, fraction = str(rng.randint(1, 20)), rng.choice(("1/2", "1/4", "3/4", "1/3", "2/3", "1/8"))
    forms = (whole, whole, whole, fraction, f"{rng.randint(1, 4)} {fraction}", f"{rng.randint(1, 9)}.5")
    return rng.choice((*forms, rng.choice("½¼¾"), f"{rng.randint(1, 3)}-{rng.randint(4, 8)}", "a", "some"))


def _line(rng: random.Random, thing: str) -> str:
    """A line of a shopping list, recipe or inventory around a thing."""
    sort = rng.random()
    if sort < 0.06:
        return thing
    front = f"{_amount(rng)} {rng.choice(_UNITS)}" if sort < 0.75 else _amount(rng)
    if sort > 0.92:
        front = (
            f"{rng.randint(1, 3)} ({rng.randint(4, 32)} {rng.choice(('oz.', 'oz', 'ounce', 'g'))}) {rng.choice(_UNITS)}"
        )
    if rng.random() < 0.1:
        front += " of"
    if rng.random() < 0.15:
        front += f" {rng.choice(_MANNERS)}"
    line = f"{front} {thing}"
    end = rng.random()
    if end < 0.3:
        return f"{line}, {rng.choice(_REMARKS)}"
    return f"{line} ({rng.choice(_REMARKS)})" if end < 0.4 else line


def pick_from_lines(rng: random.Random, pool: Pool) -> Conversation:
    """From lines with amounts, units and remarks, the bare things."""
    kind = "food" if rng.random() < 0.6 else rng.choice(sorted(pool.kinds))
    things = _things(rng, pool, kind, rng.choice((1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12)))
    if rng.random() < 0.4:
        # Any words: the lines tell what the thing is, not what is usually asked for.
        kind, things = "thing", rng.sample(rng.choice((pool.words, pool.words, pool.names)), len(things))
    if rng.random() < 0.3:
        things = [f"{rng.choice(pool.words)} {thing}" for thing in things]
    lines = [_line(rng, thing) for thing in things]
    if len(things) > 2 and rng.random() < 0.2:
        place = rng.randrange(len(things) - 1)  # two of them in one line
        lines[place : place + 2] = [f"{lines[place].partition(',')[0]} {rng.choice(('and', 'or'))} {things[place + 1]}"]
    joint = rng.choice(("\n", "\n", "; ", ", and ", "json"))
    text = _compact(lines) if joint == "json" else joint.join(lines)
    if len(things) == 1 and rng.random() < 0.6:
        wording = (
            "What is it, without amount and remarks?",
            "Give only the name of the thing.",
            "Name the thing in this line.",
            f"Which {kind} is meant? Answer with its name only.",
        )
        return _chat(rng, rng.choice(wording), text, things[0])
    if rng.random() < 0.3:
        title = f"{rng.choice(pool.words).capitalize()} {rng.choice(pool.words)}\n" if rng.random() < 0.5 else ""
        bland = "Extract the requested information from the input as JSON."
        return ("system", bland), ("user", title + text), ("assistant", _compact(things))
    wording = (
        f"Extract every {kind} {{}}.",
        f"Return each {kind} named in the lines {{}}.",
        "List the things {}, without amounts.",
        f"Find the {kind} names. Answer {{}}.",
        "Return only the names of the things {}.",
    )
    return _chat(rng, rng.choice(wording).format(rng.choice(_LIST_ORDER)), text, _compact(things))


def line_to_fields(rng: random.Random, pool: Pool) -> Conversation:
    """A line as a JSON object of amount, unit, name."""
    thing = _thing(rng, pool, rng.choice(("food", "tool", "clothing", "plant")))
    amount, unit = rng.randint(1, 40), rng.choice(_UNITS)
    instruction = rng.choice(
        (
            "Turn the line into a JSON object with amount, unit and name.",
            "Return amount, unit and name as JSON.",
            'Answer with a JSON object: "amount", "unit", "name".',
        )
    )
    return _chat(
        rng, instruction, f"{amount} {unit} {thing}", _compact({"amount": str(amount), "unit": unit, "name": thing})
    )


def names_in_text(rng: random.Random, pool: Pool) -> Conversation:
    """Things put into frames of a sentence, to be found again."""
    things = _items(rng, pool, rng.randint(1, 3))
    frames = (
        "We saw {} on the way.",
        "I have never liked {}.",
        "Please bring {} tomorrow.",
        "They talked about {} all night.",
        "There was {} on the table, and nobody cared.",
        "Nothing is better than {}.",
        "He came back with {}.",
    )
    text = " ".join(rng.choice(frames).format(thing) for thing in things)
    wording = (
        "Which things are named in the sentences? Answer {}.",
        "Extract what is named, {}.",
        "Return what each sentence is about {}.",
    )
    return _chat(rng, rng.choice(wording).format(rng.choice(_LIST_ORDER)), text, _compact(things))


# --- looking up ------------------------------------------------------------------------------------------------------


def look_up(rng: random.Random, pool: Pool) -> Conversation:
    keys, values = _items(rng, pool, rng.randint(3, 10)), _items(rng, pool, 10)
    table = dict(zip(keys, values, strict=False))
    key = rng.choice(list(table))
    shown = rng.choice((", ", "\n", "; ")).join(f"{k}{rng.choice((': ',))}{v}" for k, v in table.items())
    form = rng.random()
    if form < 0.5:
        return _chat(
            rng, rng.choice((f"What is {key}?", f"Look up {key}.", f"Give the value of {key}.")), shown, table[key]
        )
    if form < 0.75:
        back = rng.choice((f"Which key has the value {table[key]}?", f"What belongs to {table[key]}?"))
        # Two keys with one value have no single answer.
        return _chat(rng, back, shown, next(k for k, v in table.items() if v == table[key]))
    wanted = rng.sample(list(table), min(len(table), rng.randint(1, 3)))
    return _chat(
        rng,
        f"Return these as a JSON object: {', '.join(wanted)}.",
        shown,
        _compact({name: table[name] for name in wanted}),
    )


def record(rng: random.Random, pool: Pool) -> Conversation:
    """A record in lines to a JSON object, or one of its fields."""
    fields = {
        "name": f"{rng.choice(pool.names)} {rng.choice(pool.names)}",
        "city": rng.choice(pool.names),
        "age": str(rng.randint(5, 99)),
        "job": _thing(rng, pool, "person"),
        "likes": _thing(rng, pool, "food"),
        "pet": _thing(rng, pool, "animal"),
    }
    chosen = rng.sample(sorted(fields), rng.randint(3, 6))
    prose = {
        "name": "{} is the name.",
        "city": "The city is {}.",
        "age": "The age is {}.",
        "job": "Works as {}.",
        "likes": "Likes {} most.",
        "pet": "Has one {} at home.",
    }
    if rng.random() < 0.5:
        text = "\n".join(f"{field.capitalize()}: {fields[field]}" for field in chosen)
    else:
        text = " ".join(prose[field].format(fields[field]) for field in chosen)
    if rng.random() < 0.5:
        field = rng.choice(chosen)
        return _chat(
            rng,
            rng.choice((f"What is the {field}?", f"Give only the {field}.", f"Extract the {field}.")),
            text,
            fields[field],
        )
    order = f"Return a JSON object with {', '.join(chosen)}."
    return _chat(rng, order, text, _compact({field: fields[field] for field in chosen}))


def which_word(rng: random.Random, pool: Pool) -> Conversation:
    """Given some definitions, name the word of one of them, or give the meaning of one word."""
    meanings = rng.sample(list(pool.definitions), rng.randint(2, 5))
    word, sense = rng.choice(meanings)
    shown = "\n".join(f"{w}: {s}" for w, s in meanings)
    if rng.random() < 0.5:
        return _chat(rng, f'Which word means "{sense}"?', shown, word)
    return _chat(
        rng, rng.choice((f'What does "{word}" mean?', f"Give the meaning of {word} from the list.")), shown, sense
    )


def next_word(rng: random.Random, pool: Pool) -> Conversation:
    sentence = rng.choice(pool.sentences)
    words = sentence.split()
    unique = [i for i in range(len(words) - 1) if words.count(words[i]) == 1]
    if not unique:
        return repeat_sentence(rng, pool)
    place = rng.choice(unique)
    return _chat(rng, f'Which word comes right after "{words[place]}" in the text?', sentence, words[place + 1])


# --- labels ----------------------------------------------------------------------------------------------------------


def mapping(rng: random.Random, pool: Pool) -> Conversation:
    """Examples of text → invented label, then one of the texts again: the label must be copied."""
    count = rng.randint(3, 8)
    long = rng.random() < 0.5
    texts = rng.sample(pool.sentences, count) if long else _items(rng, pool, count)
    labels = _invented(rng, rng.randint(2, 4))
    given = [(text, rng.choice(labels)) for text in texts]
    return _few_shot(rng, given, rng.choice(given), labels)


def mapping_by_kind(rng: random.Random, pool: Pool) -> Conversation:
    """The label follows from the kind of thing; the query is a new thing of a kind that was shown."""
    kinds = rng.sample(sorted(pool.kinds), rng.randint(2, 4))
    labels = kinds if rng.random() < 0.5 else _invented(rng, len(kinds))
    label_of = dict(zip(kinds, labels, strict=True))
    order = kinds + rng.choices(kinds, k=rng.randint(0, 5))
    rng.shuffle(order)
    given = [(_thing(rng, pool, kind), label_of[kind]) for kind in order]
    kind = rng.choice(kinds)
    return _few_shot(rng, given, (_thing(rng, pool, kind), label_of[kind]), labels)


def mapping_by_word(rng: random.Random, pool: Pool) -> Conversation:
    """A marker word inside a sentence decides the label; the query is a new sentence with one of the markers."""
    markers = rng.sample(pool.words, rng.randint(2, 4))
    labels = _invented(rng, len(markers))
    order = list(range(len(markers))) + rng.choices(range(len(markers)), k=rng.randint(0, 4))
    rng.shuffle(order)

    def marked(which: int) -> tuple[str, str]:
        words = rng.choice(pool.sentences).split()[:14]
        words.insert(rng.randrange(len(words)), markers[which])
        return " ".join(words), labels[which]

    return _few_shot(rng, [marked(which) for which in order], marked(rng.randrange(len(markers))), labels)


def _few_shot(rng: random.Random, given: Sequence[Turn], query: Turn, labels: Sequence[str]) -> Conversation:
    """The examples as turns of a conversation, or listed in one prompt."""
    wording = ("Give the label of the text.", "Classify.", "Answer with one label.", "Which label fits?")
    instruction = rng.choice(wording)
    if rng.random() < 0.5:
        instruction += f" Labels: {', '.join(sorted(labels))}."
    if rng.random() < 0.45:
        if rng.random() < 0.5:
            turns: list[Turn] = [("system", instruction)]
            ask = "{}"
        else:
            turns, ask = [], instruction + "\n\n{}"
        for text, label in [*given, query]:
            turns += [("user", ask.format(text)), ("assistant", label)]
        return tuple(turns)
    arrow = rng.choice((" → ", " -> ", " => ", ": ", "\nLabel: ", " | "))
    front = rng.choice(("", "", "Text: "))
    shown = "\n".join(f"{front}{text}{arrow}{label}" for text, label in given)
    return ("user", f"{instruction}\n\n{shown}\n{front}{query[0]}{arrow.rstrip()}"), ("assistant", query[1])


def kind_of(rng: random.Random, pool: Pool) -> Conversation:
    """Choose among kinds that the prompt names; the word and its meaning are given, or the word alone."""
    kinds = rng.sample(sorted(pool.kinds), rng.randint(2, 5))
    kind = rng.choice(kinds)
    wording = (
        f"Is this one of: {', '.join(kinds)}? Answer with one of them.",
        f"Classify as {' or '.join(kinds)}.",
        f"Choose the right label ({' / '.join(kinds)}).",
    )
    return _chat(rng, rng.choice(wording), _thing(rng, pool, kind), kind)


Exercise = Callable[[random.Random, Pool], Conversation]

EXERCISES: tuple[tuple[Exercise, float], ...] = (
    (repeated_words, 6),
    (repeated_forms, 14),
    (repeated_pairs, 5),
    (repeat_list, 14),
    (repeat_sentence, 8),
    (reorder, 4),
    (capitals, 4),
    (numbers, 4),
    (filter_list, 5),
    (filter_kind, 6),
    (pick_from_lines, 22),
    (line_to_fields, 2),
    (names_in_text, 4),
    (look_up, 8),
    (record, 5),
    (which_word, 4),
    (next_word, 3),
    (mapping, 8),
    (mapping_by_kind, 6),
    (mapping_by_word, 5),
    (kind_of, 3),
)


def make_exercise(rng: random.Random, pool: Pool) -> Conversation:
    """One exercise, drawn by weight."""
    functions, weights = zip(*EXERCISES, strict=True)
    chosen: Exercise = rng.choices(functions, weights)[0]
    return chosen(rng, pool)
