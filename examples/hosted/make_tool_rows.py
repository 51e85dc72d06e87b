"""Writes home_tools.jsonl: 96 made-up wishes to a house, each answered by one call of a tool; always the same.

A row is what OpenAI's fine-tuning takes for function calling: a system message, a wish, an assistant's turn that calls
one of eight tools or `refuse_request`, and the definitions of all of them.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SYSTEM = "You run a house. Answer every wish with one call of a tool. A wish that no tool can fulfil is refused."
ROOMS = ("kitchen", "bedroom", "hall", "study", "cellar", "bathroom")
Call = tuple[str, dict[str, Any]]


def tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    """A definition in OpenAI's form; every property is required."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


ROOM = {"type": "string", "enum": list(ROOMS)}
TOOLS = [
    tool("set_light", "Switch a room's light.", room=ROOM, on={"type": "boolean"}),
    tool("dim_light", "Set a room's light to a share of its power.", room=ROOM, percent={"type": "integer"}),
    tool("set_heating", "Set a room's temperature.", room=ROOM, degrees={"type": "integer"}),
    tool("open_blind", "Open or close a room's blind.", room=ROOM, open={"type": "boolean"}),
    tool("play_music", "Play a kind of music in a room.", room=ROOM, kind={"type": "string"}),
    tool("start_timer", "Ring after some minutes.", minutes={"type": "integer"}),
    tool("lock_door", "Lock or unlock the front door.", locked={"type": "boolean"}),
    tool("report_power", "Say how much power a room uses.", room=ROOM),
    tool("refuse_request", "Refuse a wish that no other tool can fulfil."),
]


def wishes(draw: random.Random) -> list[tuple[str, Call]]:
    """One wish for every tool, two for some, with its call."""
    room, other = draw.sample(ROOMS, 2)
    percent, degrees, minutes = draw.randrange(10, 100, 5), draw.randrange(16, 25), draw.randrange(2, 60)
    kind = draw.choice(("jazz", "folk", "a waltz", "quiet piano", "old rock", "opera"))
    on, is_open, locked = draw.random() < 0.5, draw.random() < 0.5, draw.random() < 0.5
    asks_light = f"Turn the light in the {room} {'on' if on else 'off'}, please."
    asks_blind = f"{'Open' if is_open else 'Close'} the blind in the {room}."
    asks_lock = "Lock the front door." if locked else "Unlock the front door, I am home."
    refused = draw.choice(
        ("Book me a flight to Lisbon.", "Walk the dog.", "Paint the fence green.", "Call my sister.", "Cook some rice.")
    )
    return [
        (asks_light, ("set_light", {"room": room, "on": on})),
        (f"Dim the {other} to {percent} percent.", ("dim_light", {"room": other, "percent": percent})),
        (f"I want {degrees} degrees in the {room}.", ("set_heating", {"room": room, "degrees": degrees})),
        (asks_blind, ("open_blind", {"room": room, "open": is_open})),
        (f"Play {kind} in the {other}.", ("play_music", {"room": other, "kind": kind})),
        (f"Wake me in {minutes} minutes.", ("start_timer", {"minutes": minutes})),
        (asks_lock, ("lock_door", {"locked": locked})),
        (f"How much power does the {room} use?", ("report_power", {"room": room})),
        (refused, ("refuse_request", {})),
    ]


def row(number: int, wish: str, call: Call) -> dict[str, Any]:
    """A training row in OpenAI's form."""
    name, arguments = call
    called = {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    }
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": wish},
        {"role": "assistant", "tool_calls": [called]},
    ]
    return {"messages": messages, "tools": TOOLS, "parallel_tool_calls": False}


def main() -> None:
    draw = random.Random(7)
    made: dict[str, Call] = {}
    while len(made) < 96:
        made.update(wishes(draw))
    pairs = list(made.items())[:96]
    draw.shuffle(pairs)
    lines = [json.dumps(row(n, wish, call)) for n, (wish, call) in enumerate(pairs, 1)]
    (Path(__file__).parent / "home_tools.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
