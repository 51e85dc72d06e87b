"""Licences of bases: read from cards, texts and configurations, and held against a use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.models.licence import check_licence, front_matter, readings
from tunesmith.models.licence_terms import LICENCES, licence_by_id, licence_by_text
from tunesmith.models.load import EMBEDDED

MIT = "MIT License\n\nCopyright (c) 2026 Somebody\n\nPermission is hereby granted, free of charge, to any person"
APACHE = "                 Apache License\n           Version 2.0, January 2004\n\n   TERMS AND CONDITIONS FOR USE"


def folder(tmp_path: Path, card: str | None = None, **files: str) -> Path:
    made = tmp_path / "base"
    made.mkdir()
    if card is not None:
        (made / "README.md").write_text(f"---\n{card}\n---\n# A model\n", encoding="utf-8")
    for name, text in files.items():
        (made / name).write_text(text, encoding="utf-8")
    return made


@pytest.mark.parametrize(
    ("said", "commercial", "research"),
    [
        ("apache-2.0", "allowed", "allowed"),
        ("MIT", "allowed", "allowed"),
        ("cc-by-4.0", "allowed", "allowed"),
        ("cc-by-sa-4.0", "conditions", "conditions"),
        ("cc-by-nc-4.0", "forbidden", "conditions"),
        ("cc-by-nc-sa-4.0", "forbidden", "conditions"),
        ("llama3.1", "conditions", "conditions"),
        ("gemma", "conditions", "conditions"),
        ("bigscience-openrail-m", "conditions", "conditions"),
        ("something-of-our-own", "unknown", "unknown"),
    ],
)
def test_the_card_decides(tmp_path, said, commercial, research):
    base = folder(tmp_path, f"license: {said}")
    for use, expected in (("commercial", commercial), ("research", research)):
        found = check_licence(base, use, name=str(base))
        assert found.permission == expected
        assert found.where == (f"README.md (license): {said}",)
        assert found.use == use and found.words.startswith(f"{use} use: ")
        assert not found.conditions.endswith(" ")


def test_another_licence_is_looked_up_by_its_name(tmp_path):
    base = folder(tmp_path, "license: other\nlicense_name: qwen-research\nlicense_link: LICENSE")
    found = check_licence(base, "commercial", name=str(base))
    assert (found.permission, found.name) == ("forbidden", "Qwen research licence")
    assert found.where == ("README.md (license_name): qwen-research",)


def test_a_text_is_known_by_its_words(tmp_path):
    base = folder(tmp_path, None, LICENSE=MIT)
    found = check_licence(base, "commercial", name=str(base))
    assert (found.name, found.permission, found.where) == ("MIT", "allowed", ("LICENSE: MIT",))


def test_a_text_nobody_knows_is_not_taken_for_free(tmp_path):
    base = folder(tmp_path, "license: apache-2.0", LICENSE="Our Very Own Terms\n\nAsk us before you do anything.")
    found = check_licence(base, "commercial", name=str(base))
    assert found.permission == "unknown" and found.name == "Our Very Own Terms"
    assert len(found.where) == 2 and "read it" in found.conditions


def test_the_strictest_of_two_counts_and_both_are_named(tmp_path):
    base = folder(tmp_path, "license: cc-by-nc-4.0", LICENSE=APACHE)
    found = check_licence(base, "commercial", name=str(base))
    assert found.permission == "forbidden" and "Apache 2.0" in found.conditions
    assert [place.split(":")[0] for place in found.where] == ["README.md (license)", "LICENSE"]


def test_a_list_of_licences_and_a_key_of_the_configuration(tmp_path):
    base = folder(tmp_path, "license: [mit, gpl-3.0]", **{"config.json": json.dumps({"license": "apache-2.0"})})
    assert [one.said for one in readings(base)] == ["mit", "gpl-3.0", "apache-2.0"]
    assert check_licence(base, "commercial").permission == "conditions"


def test_a_tuned_model_points_to_what_it_was_made_of(tmp_path):
    found = check_licence(folder(tmp_path, "base_model: org/big"), "commercial")
    assert found.permission == "unknown" and found.name == "that of org/big"


@pytest.mark.parametrize("card", ["license", "license: [", "- a\n- b", "license: !!python/object:os.system x"])
def test_a_damaged_card_is_not_known_even_beside_a_free_text(tmp_path, card):
    found = check_licence(folder(tmp_path, card, LICENSE=MIT), "commercial")
    assert found.permission == "unknown" and "cannot be read" in found.name
    assert found.where == ("README.md: a card whose front matter cannot be read", "LICENSE: MIT")


def test_a_card_that_names_nothing_leaves_the_word_to_the_text(tmp_path):
    assert check_licence(folder(tmp_path, "license:"), "commercial").name == "not found"
    (tmp_path / "base" / "LICENSE").write_text(MIT)
    assert check_licence(tmp_path / "base", "commercial").permission == "allowed"


def test_front_matter_ends_where_it_ends():
    assert front_matter("\ufeff---\nlicense: mit\n---\nlicense: gpl-3.0\n") == {"license": "mit"}
    assert front_matter("\n\n---\nlicense: cc-by-nc-4.0\n---\n") == {"license": "cc-by-nc-4.0"}
    assert front_matter("---\nlicense: mit\n") is None
    assert front_matter("# A card\n---\nlicense: mit\n---\n") == {}
    assert front_matter("") == {} == front_matter("---\n---\n")


@pytest.mark.parametrize("said", ["apache-2.0", "mit"])
def test_a_free_licence_frees_nothing_that_a_model_was_made_of(tmp_path, said):
    found = check_licence(folder(tmp_path, f"license: {said}\nbase_model: org/big"), "commercial")
    assert found.permission == "conditions" and "org/big, whose licence holds too" in found.conditions
    assert found.where == (f"README.md (license): {said}", "README.md (base_model): that of org/big")


def test_conditions_of_its_own_and_of_what_it_was_made_of_are_both_said(tmp_path):
    found = check_licence(folder(tmp_path, "license: gemma\nbase_model: [org/a, org/b]"), "commercial")
    assert found.permission == "conditions" and found.name == "Gemma terms of use"
    assert "forbidden uses" in found.conditions and "made of org/a, org/b" in found.conditions


def test_terms_of_the_weights_beside_those_of_the_code(tmp_path):
    base = folder(tmp_path, None, LICENSE=APACHE, MODEL_LICENSE="Terms of the weights\nFor study.")
    found = check_licence(base, "commercial", name=str(base))
    assert found.permission == "unknown" and found.name == "Terms of the weights"


BSD = (
    "Copyright (c) 2026 Somebody\nRedistribution and use in source and binary forms, with or without modification, are "
)


def test_a_model_made_of_a_folder_of_this_machine_has_the_licence_read_there(tmp_path):
    made = folder(tmp_path, f"base_model: {EMBEDDED / 'base'}")
    found = check_licence(made, "commercial")
    assert (found.name, found.permission) == ("CC BY-SA", "conditions")
    assert found.where == ("README.md (base_model), its MODEL_CARD.md (license): cc-by-sa-4.0",)
    itself = tmp_path / "itself"
    itself.mkdir()
    (itself / "README.md").write_text(f"---\nlicense: mit\nbase_model: {itself}\n---\n", encoding="utf-8")
    assert check_licence(itself, "commercial").permission == "conditions"  # and it ends


@pytest.mark.parametrize(
    "text",
    [
        f"{MIT}\n\nIt may be used for non-commercial purposes only.",
        f"{MIT}\n\nCommons Clause: the right to sell is not granted.",
        f"Modified {MIT}",
        f"{MIT} obtaining a copy, for research, to deal in it.",
        f"{MIT}\n{'Further words that nobody reads. ' * 80}",
        f"{APACHE}\n{'x ' * 6_000}\nThe weights are for academic use only.",
        f"{APACHE}\n{'terms ' * 2_500}",
        "The code is under the Apache License, Version 2.0. What was learnt is ours.",
        f"Terms of Our Model\n{'word ' * 200}\nParts: Apache License, Version 2.0, January 2004",
        f"{BSD}permitted for research only.",
        "Permission to use, copy, modify, and/or distribute this software for educational purposes is granted.",
        "Creative Commons Attribution 4.0 for the card; the weights may not be used.",
    ],
)
def test_a_text_that_only_looks_free_is_not_taken_for_free(text):
    found = licence_by_text(text)
    assert found is None or found.commercial != "allowed"


def test_words_that_forbid_count_wherever_they_stand():
    found = licence_by_text(f"{APACHE}\n{'word ' * 4_000}\nWeights: Creative Commons Attribution-NonCommercial 4.0")
    assert found is not None and found.commercial == "forbidden"


@pytest.mark.parametrize("said", ["tongyi-qianwen-research", "cc-by-nc-sa-2.5", "cc-by-nc"])
def test_more_that_forbids_business(said):
    found = licence_by_id(said)
    assert found is not None and (found.commercial, found.research) == ("forbidden", "conditions")


def test_a_hub_base_that_is_not_here_is_not_guessed_from_its_name():
    found = check_licence(None, "commercial", name="meta-llama/Llama-3.1-8B")
    assert (found.permission, found.gated, found.hub) == ("unknown", "not known offline", True)
    assert "https://huggingface.co/meta-llama/Llama-3.1-8B" in found.conditions


def test_without_a_use_commercial_use_is_spoken_of(tmp_path):
    found = check_licence(folder(tmp_path, "license: cc-by-nc-4.0"), None)
    assert found.use is None and found.words == "commercial use: forbidden"


@pytest.mark.parametrize("name", ["base", "tiny"])
def test_our_own_bases(name):
    found = check_licence(EMBEDDED / name, "commercial", name=f"embedded:{name}")
    assert (found.name, found.permission, found.gated) == ("CC BY-SA", "conditions", "not from the hub")
    assert found.where == ("MODEL_CARD.md (license): cc-by-sa-4.0",)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (APACHE, "Apache 2.0"),
        ("Creative Commons Attribution-NonCommercial 4.0 International", "CC BY-NC (also SA, ND)"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 4.0", "CC BY-NC (also SA, ND)"),
        ("Creative Commons Attribution-ShareAlike 4.0 International", "CC BY-SA"),
        ("Attribution-NoDerivatives 4.0 International", "CC BY-ND"),
        ("Creative Commons Attribution 4.0 International Public License", "CC BY"),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date", "Llama community licence"),
        ("Gemma Terms of Use\n\nLast modified", "Gemma terms of use"),
        ("Qwen RESEARCH LICENSE AGREEMENT", "Qwen research licence"),
        ("Tongyi Qianwen LICENSE AGREEMENT", "Qwen or Tongyi Qianwen licence"),
        ("Tongyi Qianwen RESEARCH LICENSE AGREEMENT", "Qwen research licence"),
        (
            "Mozilla Public License Version 2.0\n" + "x " * 500 + "the GNU Affero General Public License",
            "Mozilla Public License",
        ),
        ("GNU GENERAL PUBLIC LICENSE Version 2\n" + "x " * 500 + "the GNU Lesser General Public License", "GNU GPL"),
        (
            "This is free and unencumbered software, for any purpose, commercial or non-commercial",
            "CC0 or public domain",
        ),
        ('Copyright 2026\nLicensed under the Apache License, Version 2.0 (the "License");', "Apache 2.0"),
        ("BigScience RAIL License v1.0", "OpenRAIL"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3", "GNU AGPL"),
        ("GNU LESSER GENERAL PUBLIC LICENSE", "GNU LGPL"),
        ("GNU GENERAL PUBLIC LICENSE\nVersion 3", "GNU GPL"),
        ("Redistribution and use in source and binary forms, with or without", "BSD"),
    ],
)
def test_known_texts(text, name):
    found = licence_by_text(text)
    assert found is not None and found.name == name


def test_the_table_says_each_thing_once():
    ids = [name for licence in LICENCES for name in licence.ids]
    assert len(ids) == len(set(ids)) and all(name == name.lower() for name in ids)
    assert licence_by_id(" Apache-2.0 ") is licence_by_id("apache-2.0") is not None
    for licence in LICENCES:  # what is asked of people is said, and research is never stricter than business
        assert licence.conditions or licence.commercial == "allowed"
        order = ("forbidden", "unknown", "conditions", "allowed")
        assert order.index(licence.research) >= order.index(licence.commercial)
