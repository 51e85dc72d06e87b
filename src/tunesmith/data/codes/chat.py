"""Findings about rows that hold a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

CHAT: Mapping[str, Code] = MappingProxyType(
    {
        "messages_not_list": Code(
            "error",
            "messages is not a list with at least one message",
            "The row holds no conversation.",
            'write messages as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
        ),
        "message_not_object": Code(
            "error",
            "a message that is not an object",
            "It has neither role nor content.",
            'write it as {"role": "…", "content": "…"}',
        ),
        "role_missing": Code(
            "error",
            "a message without a role",
            "A chat template has no place for it.",
            "say who speaks: system, developer, user, assistant or tool",
        ),
        "unknown_role": Code(
            "error",
            "a message whose role is unknown",
            "A chat template has no place for it.",
            "use system, developer, user, assistant or tool",
        ),
        "content_not_text": Code(
            "error",
            "a message whose content is not a text",
            "Only text can be learnt here.",
            "write content as one string",
        ),
        "roles_out_of_order": Code(
            "error",
            "roles out of order",
            "Chat templates render such a conversation wrongly or refuse it.",
            "one system message at most, first; then user and assistant in turn",
        ),
        "no_final_answer": Code(
            "error",
            "a conversation that does not end with the assistant",
            "There is no answer to learn or to score.",
            "end the row with the assistant's message, or cut what follows it",
        ),
        "bad_weight": Code(
            "error",
            "a weight that is not a number from 0 to 1, or not on an assistant's message",
            "It decides what is learnt, so a guess would be wrong.",
            "use 0 or 1, on assistant messages only",
        ),
        "nothing_to_learn": Code(
            "warning",
            "every assistant message has weight 0; the row is left out",
            "Nothing in the row would be learnt.",
            "give at least one assistant message weight 1, or remove the row",
        ),
        "no_final_question": Code(
            "error",
            "a conversation that does not end with the user",
            "There is nothing to ask.",
            "end the row with the user's message",
        ),
        "tool_call_broken": Code(
            "error",
            "a tool call that cannot be read",
            "A model would learn to make calls that nobody can carry out.",
            'give every call a name, and arguments as the JSON text of an object, such as {"city": "Oslo"}',
        ),
        "tool_result_unmatched": Code(
            "error",
            "a tool's result that belongs to no call",
            "Chat templates render such a conversation wrongly or refuse it.",
            "let each result follow the assistant's calls, with the tool_call_id of one of them",
        ),
        "tools_broken": Code(
            "error",
            "tool definitions that cannot be read",
            "The model would not see which tools it may call.",
            'write tools as [{"type": "function", "function": {"name": "…", "parameters": {…}}}]',
        ),
        "parallel_calls_clash": Code(
            "warning",
            "several calls in one turn of a row whose parallel_tool_calls is false",
            "The model is told to call one tool at a time and learns to call several.",
            "write the calls as turns of their own, or remove parallel_tool_calls",
        ),
        "unknown_message_key": Code(
            "info",
            "keys of messages that are not used",
            "What they say is not learnt.",
            "nothing, or remove the keys",
        ),
    }
)
